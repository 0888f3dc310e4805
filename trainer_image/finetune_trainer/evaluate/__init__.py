"""Evaluation of a checkpoint and its base model on held-out rows."""
