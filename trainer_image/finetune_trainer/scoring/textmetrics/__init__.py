"""Metrics whose value of a row follows from the text of the answer and the accepted texts."""
