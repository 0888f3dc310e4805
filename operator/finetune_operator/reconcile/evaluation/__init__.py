"""Reconcile Evaluations: measure existing Checkpoints, one after the other."""
