"""A Kubernetes operator that fine-tunes language models and rolls them into service."""
