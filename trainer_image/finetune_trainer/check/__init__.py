"""`finetune-check`: the look at rows that the cluster takes, on a laptop."""
