"""A checkpoint beside its base model on rows that neither has seen."""
