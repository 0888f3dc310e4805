"""Reconcile DatasetVersions: record which stores hold the content."""
