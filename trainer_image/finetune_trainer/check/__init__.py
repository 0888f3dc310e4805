"""`finetune-check`: check rows on a laptop as the stage `prepare` does in the cluster."""
