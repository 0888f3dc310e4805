"""One config for each process: what it is to do."""
