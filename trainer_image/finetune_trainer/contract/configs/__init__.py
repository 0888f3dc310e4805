"""Configs: one for each process, with what it has to do."""
