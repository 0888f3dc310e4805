"""The HTTPS endpoint that pods report to."""
