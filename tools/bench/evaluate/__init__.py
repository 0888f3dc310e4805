# SPDX-License-Identifier: Apache-2.0
"""Speed of the answers of an evaluation compared with one row at a time."""
