# SPDX-License-Identifier: Apache-2.0
"""Containers of records: JSON Lines, JSON list, CSV, TSV, Parquet, Excel. They do not depend on formats."""
