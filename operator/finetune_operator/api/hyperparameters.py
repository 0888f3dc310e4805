"""Hyperparameters: those that a run asks for, and those that it uses."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model


class Hyperparameters(Model):
    """What is left out is chosen once by a documented rule and kept in status.resolved."""

    epochs: Annotated[int | None, Field(ge=1, le=1000, description="Passes over the training rows.")] = None
    learning_rate: Annotated[float | None, Field(gt=0, le=1, description="Peak learning rate.")] = None
    per_device_batch_size: Annotated[
        int | None, Field(ge=1, le=4096, description="Rows a device a step.")
    ] = None
    gradient_accumulation_steps: Annotated[
        int | None, Field(ge=1, le=4096, description="Batches summed into one optimizer step.")
    ] = None
    max_sequence_length: Annotated[
        int | None, Field(ge=16, le=1048576, description="Tokens a row; longer rows are cut.")
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=2147483647, description="Seed of shuffling and dropout.")] = (
        None
    )
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Epochs without a lower validation loss after which training ends; absent: it never"
            " ends early. Needs validation rows.",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Field(
            description="Compute activations again in the backward pass instead of keeping them: less memory,"
            " more time, the same weights. Absent: false."
        ),
    ] = None


class ResolvedHyperparameters(Model):
    """The hyperparameters a run really uses."""

    epochs: int
    learning_rate: float
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_sequence_length: int
    seed: int
    total_steps: Annotated[
        int, Field(description="Optimizer steps of all epochs; a run that stops early makes fewer.")
    ]
    save_every_steps: int
    early_stopping_patience: int | None = None
    gradient_checkpointing: bool = False
    processes: Annotated[
        int, Field(description="Processes that train together, each with a batch of its own.")
    ] = 1
