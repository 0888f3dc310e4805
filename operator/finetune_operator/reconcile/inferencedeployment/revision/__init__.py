"""Determine the revision that an endpoint should serve, and prepare its weights."""
