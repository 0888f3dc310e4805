"""Scheduling of passes: the objects that a change concerns, and locks for passes that must not overlap."""
