"""Serving engines: one config for all of them, and the container of each."""
