# SPDX-License-Identifier: Apache-2.0
"""Hyperparameters that the user requests, and hyperparameters that the run uses.

The API has the same fields. Declare a new one only here, as a requested and as a recorded value.
`finetune_trainer.preflight.defaults` chooses its value, and training uses it.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import SharedPart

OnLongRows = Literal["Drop", "Fail", "Truncate"]
"""What happens to rows of training and validation that are longer than the max sequence length."""
MAX_DROPPED_SHARE: Final = 0.1
"""Share of long rows above which a run fails instead of dropping them, unless the user set `Drop`."""


class _Schedule(BaseModel):
    epochs: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Number of passes over the training rows. Default: 3; more with fewer than 34 rows,"
            " fewer with more than 8,333 rows.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Peak learning rate. Default: chosen by method and by the hidden size of the model.",
        ),
    ] = None
    per_device_batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Rows per device per step, before gradient accumulation. Default: chosen for 8 rows"
            " per optimizer step and at most 8,192 tokens at once, and halved if a batch does not fit into"
            " memory.",
        ),
    ] = None
    gradient_accumulation_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="Number of batches per optimizer step, whose gradients are accumulated. Default:"
            " chosen for 8 rows per optimizer step.",
        ),
    ] = None
    max_sequence_length: Annotated[
        int | None,
        Field(
            ge=16,
            le=1048576,
            description="Max tokens per row; onLongRows decides about longer rows. Default: the length of the"
            " longest row, rounded up to a multiple of 64, at most the context length of the model, and at"
            " most 8,192, or 4,096 with DPO, KTO and ORPO.",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=2147483647,
            description="Seed of shuffling, dropout and the initial values of the adapter. Default: 42.",
        ),
    ] = None


class _Saving(BaseModel):
    save_every_steps: int | None = None


class _Options(BaseModel):
    early_stopping_patience: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Validations without a lower loss after which training stops; one validation per"
            " epoch unless validateEverySteps is set. Needs validation rows. Default: no early stopping.",
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool | None,
        Field(
            description="Recompute activations in the backward pass instead of keeping them: less memory,"
            " more time, the same weights. Default: false. Turned on if a batch does not fit into memory."
        ),
    ] = None
    validate_every_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="Optimizer steps between two validations; the last step is always validated. Default:"
            " after each epoch; in runs with long epochs and without earlyStoppingPatience, about 20 times"
            " per run, at least 100 steps apart.",
        ),
    ] = None
    on_long_rows: Annotated[
        OnLongRows | None,
        Field(
            description="What happens to rows of training and validation with more tokens than"
            " maxSequenceLength. Drop: they are not used. Fail: the run fails and names the length that holds"
            " them. Truncate: they lose their end. Default: Drop; Fail if more than 10 % of the rows are"
            " longer.",
        ),
    ] = None


class HyperparameterFields(_Options, _Schedule):
    """Hyperparameters that a user may set."""


class RequestedHyperparameters(_Options, _Saving, _Schedule, SharedPart):
    """Hyperparameters that the user set. Preflight chooses the others.

    `save_every_steps` comes from the spec's `checkpoints`. On the wire it precedes the options.
    """


class ResolvedHyperparameterFields(BaseModel):
    """Hyperparameters of a run, as they are recorded."""

    epochs: Annotated[int, Field(description="Number of passes over the training rows.")]
    learning_rate: Annotated[float, Field(description="Peak learning rate.")]
    per_device_batch_size: Annotated[
        int, Field(description="Rows per device per step, before gradient accumulation.")
    ]
    gradient_accumulation_steps: Annotated[int, Field(description="Number of batches per optimizer step.")]
    max_sequence_length: Annotated[int, Field(description="Max tokens per row.")]
    seed: Annotated[
        int, Field(description="Seed of shuffling, dropout and the initial values of the adapter.")
    ]
    total_steps: Annotated[
        int, Field(description="Number of optimizer steps of all epochs. A run that stops early makes fewer.")
    ]
    save_every_steps: Annotated[int, Field(description="Number of optimizer steps between saved states.")]
    early_stopping_patience: Annotated[
        int | None,
        Field(
            description="Validations without a lower loss after which training stops. Absent: no early"
            " stopping."
        ),
    ] = None
    gradient_checkpointing: Annotated[
        bool, Field(description="Whether activations are recomputed in the backward pass instead of kept.")
    ] = False
    processes: Annotated[
        int, Field(description="Number of processes that train together, each with its own batch.")
    ] = 1
    """Nodes × devices."""
    max_batch_tokens: Annotated[
        int | None,
        Field(
            description="Max tokens per device at once. The rows of an optimizer step are split into batches"
            " of at most this many tokens; a longer row is a batch of its own. Absent: each batch has"
            " perDeviceBatchSize rows.",
        ),
    ] = None
    validate_every_steps: Annotated[
        int | None,
        Field(
            description="Optimizer steps between two validations. Absent: after each epoch.",
        ),
    ] = None
    on_long_rows: Annotated[
        OnLongRows | None,
        Field(
            description="Drop: rows of training and validation that are longer than maxSequenceLength are not"
            " used. Absent: no row is longer, or longer rows are truncated.",
        ),
    ] = None
    sharded: Annotated[
        bool | None,
        Field(
            description="Whether processes shard the weights of the model, instead of each having a replica."
            " Absent: Full is sharded, adapters are replicated. No effect with one process.",
        ),
    ] = None


class Hyperparameters(ResolvedHyperparameterFields, SharedPart):
    """Hyperparameters that the run uses. All of them are recorded."""
