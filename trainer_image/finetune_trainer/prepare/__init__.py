"""Stage prepare: rows as a team has them in, a validated and divided dataset out. Knows no model."""
