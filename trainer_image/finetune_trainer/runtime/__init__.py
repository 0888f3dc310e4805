"""What every process of the trainer needs. Imports nothing: `signals` is the first module of a process."""
