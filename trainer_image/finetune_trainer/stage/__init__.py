"""What all stages share: their context and their progress."""
