"""Training: the loop, its resume state, and the checkpoints it publishes."""
