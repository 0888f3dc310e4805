"""Pure builders of manifests: `build_<thing>(...) -> dict`, one file for each family."""
