"""Context and progress that all stages share."""
