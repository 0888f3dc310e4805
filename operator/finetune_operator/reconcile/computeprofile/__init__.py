"""Reconcile ComputeProfiles: report whether objects can use the profile."""
