"""How records lie in files: JSON Lines, a JSON list, CSV, TSV, Parquet. They know no format."""
