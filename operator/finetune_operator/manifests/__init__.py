"""Pure functions that build manifests, one module per family of objects."""
