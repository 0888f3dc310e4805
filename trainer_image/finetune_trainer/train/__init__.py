"""Training: the loop, its resume states, and the checkpoints it publishes."""
