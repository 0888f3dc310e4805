"""What must run before the virtual environment exists: the standard library only."""
