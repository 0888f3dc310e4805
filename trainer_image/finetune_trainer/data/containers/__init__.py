"""Containers of records: JSON Lines, JSON list, CSV, TSV, Parquet. They do not depend on formats."""
