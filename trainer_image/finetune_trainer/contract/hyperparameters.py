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
Scheduler = Literal["Linear", "Cosine", "Constant"]
"""Course of the learning rate after the warm-up."""
MAX_WARMUP_RATIO: Final = 0.5
"""The API refuses more by a CEL rule, because the API server's message about a `maximum` rounds it to 0."""
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
    batch_size: Annotated[
        int | None,
        Field(
            ge=1,
            le=65536,
            description="Rows per optimizer step over all devices, at least one per device. The trainer"
            " divides them so that they fit into memory. Default: 8, or one per device if there are more than"
            " 8; up to 64 if the rows are short and many, and the memory of the devices is known.",
        ),
    ] = None
    max_sequence_length: Annotated[
        int | None,
        Field(
            ge=16,
            le=1048576,
            description="Max tokens per row; dataset.onLongRows decides about longer rows. Default: the"
            " length of the longest row, rounded up to a multiple of 64, at most the context length of the"
            " model, and at most 8,192, or 4,096 with DPO, KTO and ORPO.",
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
    max_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Optimizer steps after which the run ends, unless epochs ends it earlier. Default: no"
            " limit. Without epochs, the rows are repeated until maxSteps.",
        ),
    ] = None
    warmup_ratio: Annotated[
        float | None,
        Field(
            ge=0,
            description="Share of the run's optimizer steps in which the learning rate rises from 0 to its"
            f" peak, from 0 to {MAX_WARMUP_RATIO}. Default: 0.05.",
        ),
    ] = None
    scheduler: Annotated[
        Scheduler | None,
        Field(
            description="Learning rate after the warm-up. Linear, Cosine: falls to 0 at the run's last"
            " optimizer step. Constant: stays at the peak. Default: Linear."
        ),
    ] = None
    weight_decay: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="Weight decay of AdamW, for all trained weights except biases and norms. Default: 0.",
        ),
    ] = None


class _Options(BaseModel):
    gradient_checkpointing: Annotated[
        bool | None,
        Field(
            description="Recompute activations in the backward pass instead of keeping them: less memory,"
            " more time, the same weights. Default: false. Turned on if a batch does not fit into memory."
        ),
    ] = None


class _OfOtherParts(BaseModel):
    save_every_steps: int | None = None
    """`checkpoints.stateEverySteps` of the spec."""
    validate_every_steps: int | None = None
    """`validation.everySteps` of the spec."""
    early_stopping_patience: int | None = None
    """`validation.earlyStoppingPatience` of the spec."""
    on_long_rows: OnLongRows | None = None
    """`dataset.onLongRows` of the spec."""


class HyperparameterFields(_Options, _Schedule):
    """Hyperparameters that a user may set."""


class RequestedHyperparameters(_OfOtherParts, _Options, _Schedule, SharedPart):
    """Hyperparameters that the user set, and what other parts of the spec set. Preflight chooses the rest."""


class StepDivision(BaseModel):
    """How the rows of an optimizer step are divided on each device into batches, which are computed one after
    the other. Apart from rounding and dropout, the weights of a run do not depend on it."""

    max_batch_rows: Annotated[
        int | None,
        Field(description="Max rows per device at once. Absent: no limit in rows."),
    ] = None
    max_batch_tokens: Annotated[
        int | None,
        Field(
            description="Max tokens per device at once; a longer row is a batch of its own. Absent: no limit"
            " in tokens.",
        ),
    ] = None


class _ResolvedSchedule(BaseModel):
    epochs: Annotated[int, Field(description="Number of passes over the training rows.")]
    learning_rate: Annotated[float, Field(description="Peak learning rate.")]
    batch_size: Annotated[int, Field(description="Rows per optimizer step over all devices.")]
    max_sequence_length: Annotated[int, Field(description="Max tokens per row.")]
    seed: Annotated[
        int, Field(description="Seed of shuffling, dropout and the initial values of the adapter.")
    ]
    total_steps: Annotated[
        int,
        Field(
            description="Number of optimizer steps, by epochs or maxSteps, whichever ends the run first."
            " Early stopping makes fewer."
        ),
    ]
    warmup_ratio: Annotated[
        float,
        Field(description="Share of totalSteps in which the learning rate rises from 0 to its peak."),
    ]
    scheduler: Annotated[Scheduler, Field(description="Learning rate after the warm-up.")]
    weight_decay: Annotated[float, Field(description="Weight decay of AdamW.")]
    save_every_steps: Annotated[int, Field(description="Number of optimizer steps between saved states.")]


class ResolvedHyperparameterFields(StepDivision, _ResolvedSchedule):
    """Hyperparameters of a run, as they are recorded."""

    max_steps: Annotated[
        int | None,
        Field(description="Optimizer steps after which the run ends. Absent: epochs ends it."),
    ] = None
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
        int, Field(description="Number of processes that train together, each with its share of a step.")
    ] = 1
    """Nodes × devices."""
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
