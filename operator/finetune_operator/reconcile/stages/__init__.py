"""The road of one stage, the same for runs and Datasets: start its Job, follow it, read its result."""
