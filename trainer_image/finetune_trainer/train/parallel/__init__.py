"""Training one model in several processes: sharding of weights and batches."""
