"""Reconcile FineTuneJobs: one chain of stages from data to a verdict."""
