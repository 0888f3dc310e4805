"""Hyperparameters: those that the user gave, and those that the run uses."""

from finetune_trainer.contract.base import Contract


class RequestedHyperparameters(Contract):
    """What the user gave; the rest is chosen in preflight."""

    epochs: int | None = None
    learning_rate: float | None = None
    per_device_batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    max_sequence_length: int | None = None
    seed: int | None = None
    save_every_steps: int | None = None
    early_stopping_patience: int | None = None
    gradient_checkpointing: bool | None = None


class Hyperparameters(Contract):
    """What the run uses; all of it is recorded."""

    epochs: int
    learning_rate: float
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_sequence_length: int
    seed: int
    total_steps: int
    """Of all epochs; a run that stops early makes fewer."""
    save_every_steps: int
    early_stopping_patience: int | None = None
    """Epochs without a lower validation loss after which the run ends; None: it never ends early."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept."""
    processes: int = 1
    """That train together, each with a batch of its own; nodes times devices."""
