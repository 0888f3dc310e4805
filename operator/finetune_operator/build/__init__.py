"""Pure: `build_<thing>(...) -> dict`, one file a family of manifests."""
