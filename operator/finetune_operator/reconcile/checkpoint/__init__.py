"""Reconcile Checkpoints: decide the promotion, and record evaluations and users."""
