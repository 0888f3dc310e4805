"""The metrics, one module each: a function from a model and its rows to one number."""
