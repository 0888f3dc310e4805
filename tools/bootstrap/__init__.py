"""Commands that run before the virtual environment exists, with the standard library only."""
