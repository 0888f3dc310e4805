"""Checkpoints and DatasetVersions as records: their owners, users, history limits and deletion."""
