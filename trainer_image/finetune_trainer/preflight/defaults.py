# SPDX-License-Identifier: Apache-2.0
"""Choose the hyperparameters that the user did not set, by the rules below. The run records them.

epochs
    OpenAI's rule for fine-tuning jobs: normally 3. With fewer than 34 rows, enough epochs for about 100
    training examples (at most 25); with more than 8,333 rows, enough for about 25,000 (at least 1).
learningRate
    5e-5 for Full and ten times that for LoRA, times (2000 / hidden size) ^ p, with p = 0.781 or p = 0.0775:
    the fits over the Llama and the Qwen models in J. Schulman et al., "LoRA Without Regret", 2025, with the
    constants of the authors' tinker-cookbook. The lower of the two rates is used, because a rate that is too
    high does more harm. For LoRA it is 5.5e-4 at a hidden size of 640 (270 million parameters) and 2.9e-4 at
    4,096 (8 billion). QLoRA learns like LoRA (Dettmers et al., "QLoRA", 2023) and uses the same rate.
    DPO 5e-6 and ORPO 8e-5, as in TRL's scripts with an adapter (trl/scripts/dpo.py and
    examples/scripts/orpo.py: ten times the 8e-6 of Hong et al., "ORPO", 2024). KTO 5e-6, the upper end of the
    range that TRL's page recommends for all weights, at the same beta of 0.1. These rates change a model that
    already answers well only slightly. A small model, or answers that must change a lot, need a higher rate.
maxSequenceLength
    The smallest multiple of 64 that holds the longest row, at most the model's context length, and at most
    8,192: one such row needs the memory of a default batch of shorter rows. A row of DPO, KTO or ORPO counts
    twice, so it has at most 4,096 tokens.
perDeviceBatchSize, gradientAccumulationSteps
    The global batch is 8 rows, or one row per process if there are more than 8 processes. Each process runs
    as many of its rows at once as fit into 8,192 tokens, rounded down to a power of two, and accumulates
    gradients over the rest. A row of DPO, KTO or ORPO counts twice, because it has two sequences.
    With a token budget (maxBatchTokens), these two only set the rows of a step: 8, or one per process,
    doubled up to 64 while they fill less than one batch of each process and the run still makes 500 steps.
    More rows per step use devices better, and fewer steps learn less.
maxBatchTokens
    None, so that batches have perDeviceBatchSize rows. Where the memory of the devices is known: 16,384, or
    what fits of it (`estimate.plan`). Not for DPO, KTO and ORPO, whose trainers build their batches, and not
    if perDeviceBatchSize or gradientAccumulationSteps is set.
seed
    42.
saveEverySteps
    A tenth of all steps, at least 10. A killed pod repeats at most this many steps.
earlyStoppingPatience
    None: a run trains to its last epoch unless the user sets a patience.
gradientCheckpointing
    False: it costs time. `estimate.plan` turns it on where the memory of the devices is known to be short.
sharded
    None: Full is sharded across several processes, adapters are replicated. `compute.sharding` changes it.
validateEverySteps
    None, which validates after each epoch. If an epoch is long enough for at least two validations, a
    twentieth of all steps, at least 100, so that a bad run shows early and the best weights are chosen among
    several. Not with earlyStoppingPatience, which counts validations: its default unit stays the epoch.
"""

from typing import Final

from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import METHODS, OBJECTIVES, MethodInfo, Objective, ObjectiveInfo
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.train.schedule import steps_per_epoch

DEFAULT_EPOCHS: Final = 3
MIN_TRAINING_EXAMPLES: Final = 100
MAX_TRAINING_EXAMPLES: Final = 25_000
MAX_EPOCHS: Final = 25

REFERENCE_HIDDEN_SIZE: Final = 2000
HIDDEN_SIZE_EXPONENTS: Final = (0.781, 0.0775)

LENGTH_MULTIPLE: Final = 64

ROWS_PER_STEP: Final = 8
MAX_BATCH_TOKENS: Final = 8192
TOKEN_BUDGET: Final = 16_384
MAX_ROWS_PER_STEP: Final = 64
MIN_STEPS_OF_LARGE_BATCHES: Final = 500

SEED: Final = 42
MIN_STEPS_BETWEEN_SAVES: Final = 10

VALIDATIONS: Final = 20
MIN_STEPS_BETWEEN_VALIDATIONS: Final = 100


def choose_hyperparameters(
    requested: RequestedHyperparameters,
    method: Method,
    *,
    train_rows: int,
    longest_row_tokens: int,
    max_sequence_length: int,
    hidden_size: int,
    processes: int = 1,
    sharded: bool | None = None,
    token_budget: int | None = None,
    train_tokens: int = 0,
) -> Hyperparameters:
    """All hyperparameters of a run: the user's values, and the defaults for the rest.

    `max_sequence_length` comes from `sequence_length`. With a `token_budget`, in tokens per batch, batches
    are divided by it where the method and the request allow that; `train_tokens` is the number of tokens of
    all training rows.
    """
    objective, info = OBJECTIVES[method.objective], METHODS[method.objective, method.type]
    length = max_sequence_length
    max_rows = _max_rows_per_process(train_rows, processes)
    batch = requested.per_device_batch_size or _batch_size(objective.sequences_per_row * length, max_rows)
    accumulation = requested.gradient_accumulation_steps or max(1, ROWS_PER_STEP // (batch * processes))
    epochs = requested.epochs or _epochs(train_rows)
    if not _divides_by_tokens(requested, objective):
        token_budget = None
    if token_budget is not None:
        tokens_per_row = train_tokens / train_rows
        rows = _rows_per_step(epochs * train_rows, tokens_per_row, token_budget * processes)
        batch, accumulation = max(1, min(rows, train_rows) // processes), 1
        token_budget = max(token_budget, min(length, longest_row_tokens))
    epoch_steps = steps_per_epoch(train_rows, batch, accumulation, processes)
    total = epochs * epoch_steps
    return Hyperparameters(
        epochs=epochs,
        learning_rate=requested.learning_rate or _learning_rate(info, hidden_size),
        per_device_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_sequence_length=length,
        seed=SEED if requested.seed is None else requested.seed,
        total_steps=total,
        save_every_steps=requested.save_every_steps or max(MIN_STEPS_BETWEEN_SAVES, total // 10),
        early_stopping_patience=requested.early_stopping_patience,
        gradient_checkpointing=requested.gradient_checkpointing or False,
        validate_every_steps=_validation_interval(requested, epoch_steps, total),
        processes=processes,
        sharded=sharded,
        max_batch_tokens=token_budget,
    )


def _divides_by_tokens(requested: RequestedHyperparameters, objective: ObjectiveInfo) -> bool:
    """Whether batches may be divided by tokens instead of rows."""
    return not (
        objective.rows.is_preference_data
        or requested.per_device_batch_size
        or requested.gradient_accumulation_steps
    )


def _rows_per_step(examples: int, tokens_per_row: float, tokens_at_once: int) -> int:
    """Rows of an optimizer step of all processes, for batches divided by tokens.

    Args:
        examples: rows of all epochs.
        tokens_per_row: mean number of tokens.
        tokens_at_once: tokens of one batch of each process.
    """
    rows = ROWS_PER_STEP
    while (
        rows < MAX_ROWS_PER_STEP
        and rows * tokens_per_row < tokens_at_once
        and examples >= 2 * rows * MIN_STEPS_OF_LARGE_BATCHES
    ):
        rows *= 2
    return rows


def sequence_length(
    requested: int | None, objective: Objective, max_tokens: int, context_length: int | None
) -> int:
    """The max sequence length of a run whose longest row has `max_tokens` tokens.

    Raises StageFailure (INVALID_CONFIG) for a requested one above the model's context length.
    """
    if requested is not None:
        if context_length is not None and requested > context_length:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"hyperparameters.maxSequenceLength: {requested} is more than the {context_length} tokens of"
                " the base model's context; lower or remove it",
            )
        return requested
    rounded = -(-max_tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    limit = MAX_BATCH_TOKENS // OBJECTIVES[objective].sequences_per_row
    return min(rounded, limit, context_length or limit)


def _epochs(rows: int) -> int:
    if rows * DEFAULT_EPOCHS < MIN_TRAINING_EXAMPLES:
        return min(MAX_EPOCHS, MIN_TRAINING_EXAMPLES // rows)
    if rows * DEFAULT_EPOCHS > MAX_TRAINING_EXAMPLES:
        return max(1, MAX_TRAINING_EXAMPLES // rows)
    return DEFAULT_EPOCHS


def _validation_interval(
    requested: RequestedHyperparameters, epoch_steps: int, total_steps: int
) -> int | None:
    """Steps between validations; None to validate after each epoch."""
    if requested.validate_every_steps is not None or requested.early_stopping_patience is not None:
        return requested.validate_every_steps
    interval = max(MIN_STEPS_BETWEEN_VALIDATIONS, -(-total_steps // VALIDATIONS))
    return interval if 2 * interval <= epoch_steps else None


def _learning_rate(method: MethodInfo, hidden_size: int) -> float:
    if not method.scales_with_width:
        return method.learning_rate
    ratio = REFERENCE_HIDDEN_SIZE / hidden_size
    rate = method.learning_rate * min(ratio**exponent for exponent in HIDDEN_SIZE_EXPONENTS)
    return float(f"{rate:.1e}")


def _max_rows_per_process(rows: int, processes: int) -> int:
    """Max rows per process and step, so that every process gets rows."""
    if processes == 1:
        return ROWS_PER_STEP
    return max(1, min(ROWS_PER_STEP, rows) // processes)


def _batch_size(length: int, max_rows: int) -> int:
    fitting = max(1, min(max_rows, MAX_BATCH_TOKENS // length))
    return 1 << (fitting.bit_length() - 1)
