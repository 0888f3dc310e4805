"""Several processes that train one model: how its weights and its batches are divided."""
