"""Training speed and memory beside TRL's SFTTrainer, and what saving the state costs."""
