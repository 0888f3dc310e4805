"""The metrics, one module each: the value of a row, and where it is no mean, the score of all rows."""
