# SPDX-License-Identifier: Apache-2.0
"""Formats of records: each format turns its records into rows. They do not depend on files."""
