"""The report endpoint: pods report their progress to it by HTTPS."""
