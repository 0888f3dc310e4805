"""The metrics, a module each: from a model and its rows to one number."""
