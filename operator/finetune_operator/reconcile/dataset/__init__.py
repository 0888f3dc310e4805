"""Reconcile Datasets: prepare their rows, and check their sources for new ones."""
