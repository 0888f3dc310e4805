"""Speed of the answers of an evaluation compared with one row at a time."""
