"""Hyperparameters: those that the user gives, and those that the run uses.

The API has the same fields. A new one is declared here only: what may be asked for, and what is recorded.
`finetune_trainer.preflight.hyperparameters` chooses its value, and training uses it.
"""

from typing import Annotated

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import SharedPart


class _Schedule(BaseModel):
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


class _Saving(BaseModel):
    save_every_steps: int | None = None


class _Options(BaseModel):
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


class HyperparameterFields(_Options, _Schedule):
    """What a user may give."""


class RequestedHyperparameters(_Options, _Saving, _Schedule, SharedPart):
    """What the user gave; the rest is chosen in preflight.

    The steps between saves are with the spec's checkpoints. On the wire they stand before the options.
    """


class ResolvedHyperparameterFields(BaseModel):
    """What is recorded of a run."""

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
    """Epochs without a lower validation loss after which the run ends; None: it never ends early."""
    gradient_checkpointing: bool = False
    """Activations are computed again in the backward pass instead of kept."""
    processes: Annotated[
        int, Field(description="Processes that train together, each with a batch of its own.")
    ] = 1
    """Nodes times devices."""


class Hyperparameters(ResolvedHyperparameterFields, SharedPart):
    """What the run uses; all of it is recorded."""
