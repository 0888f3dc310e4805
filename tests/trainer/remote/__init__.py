"""Network access: sources, base models and stores, against real servers."""
