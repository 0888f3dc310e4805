"""Generate and check files of the repository."""
