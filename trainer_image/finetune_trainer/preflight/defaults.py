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
batchSize
    8 rows, or one per process if there are more than 8 processes. With a token budget (maxBatchTokens) they
    are doubled up to 64 while they fill less than one batch of each process and the run still makes 500
    steps. More rows per step use devices better, and fewer steps learn less. With maxSteps they are not
    doubled, because the user has chosen the number of steps.
maxBatchRows
    How many rows a process computes at once: as many of its rows of a step as fit into 8,192 tokens. The
    gradients of the batches of a step are added up, so this only changes memory and time. A row of DPO, KTO
    or ORPO counts twice, because it has two sequences. None with a token budget.
maxBatchTokens
    None, so that batches are divided by rows. Where the memory of the devices is known: 16,384, or what fits
    of it (`estimate.memory_plan`). Not for DPO, KTO and ORPO, whose batches are divided by rows.
maxSteps
    None: epochs ends the run. With maxSteps and without epochs, the run makes as many passes as it takes.
warmupRatio, scheduler, weightDecay
    0.05, Linear, 0: the learning rate rises in the first 5 % of the steps and falls to 0 at the last one.
seed
    42.
saveEverySteps
    A tenth of all steps, at least 10. A killed pod repeats at most this many steps.
earlyStoppingPatience
    None: a run trains to its last step unless the user sets a patience.
gradientCheckpointing
    False: it costs time. `estimate.memory_plan` turns it on where the memory of the devices is known to be
    short.
sharded
    None: Full is sharded across several processes, adapters are replicated. `compute.sharding` changes it.
validateEverySteps
    None, which validates after each epoch. If an epoch is long enough for at least two validations, a
    twentieth of all steps, at least 100, so that a bad run shows early and the best weights are chosen among
    several. Not with earlyStoppingPatience, which counts validations: its default unit stays the epoch.
"""

from typing import Final

from finetune_trainer.contract.hyperparameters import (
    Hyperparameters,
    RequestedHyperparameters,
    Scheduler,
)
from finetune_trainer.contract.method import METHODS, OBJECTIVES, Method, MethodInfo, Objective
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.train.batches import largest_batch, run_steps, steps_per_epoch

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
WARMUP_RATIO: Final = 0.05
SCHEDULER: Final[Scheduler] = "Linear"
WEIGHT_DECAY: Final = 0.0
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
    are divided by it where the method allows that; `train_tokens` is the number of tokens of all training
    rows. Raises StageFailure (INVALID_CONFIG) for a batch size below the number of processes.
    """
    objective, info = OBJECTIVES[method.objective], METHODS[method.objective, method.type]
    length = max_sequence_length
    if objective.rows.is_preference_data:
        token_budget = None
    batch_size, max_rows = max(ROWS_PER_STEP, processes), None
    if requested.batch_size is not None:
        batch_size = _spreadable(requested.batch_size, processes)
    elif token_budget is not None and requested.max_steps is None:
        examples = (requested.epochs or _epochs(train_rows)) * train_rows
        rows = _rows_per_step(examples, train_tokens / train_rows, token_budget * processes)
        batch_size = max(rows, processes)
    if token_budget is None:
        fitting = max(1, MAX_BATCH_TOKENS // (objective.sequences_per_row * length))
        max_rows = largest_batch(batch_size, processes, fitting)
    else:
        token_budget = max(token_budget, min(length, longest_row_tokens))
    epoch_steps = steps_per_epoch(train_rows, batch_size)
    epochs = requested.epochs or _epochs(train_rows)
    if requested.epochs is None and requested.max_steps is not None:
        epochs = -(-requested.max_steps // epoch_steps)
    total = run_steps(train_rows, batch_size, epochs, requested.max_steps)
    return Hyperparameters(
        epochs=epochs,
        learning_rate=requested.learning_rate or _learning_rate(info, hidden_size),
        batch_size=batch_size,
        max_sequence_length=length,
        seed=SEED if requested.seed is None else requested.seed,
        total_steps=total,
        max_steps=requested.max_steps,
        warmup_ratio=WARMUP_RATIO if requested.warmup_ratio is None else requested.warmup_ratio,
        scheduler=requested.scheduler or SCHEDULER,
        weight_decay=WEIGHT_DECAY if requested.weight_decay is None else requested.weight_decay,
        save_every_steps=requested.save_every_steps or max(MIN_STEPS_BETWEEN_SAVES, total // 10),
        early_stopping_patience=requested.early_stopping_patience,
        gradient_checkpointing=requested.gradient_checkpointing or False,
        validate_every_steps=_validation_interval(requested, min(epoch_steps, total), total),
        processes=processes,
        sharded=sharded,
        max_batch_rows=max_rows,
        max_batch_tokens=token_budget,
    )


def _spreadable(batch_size: int, processes: int) -> int:
    """The batch size. Raises StageFailure (INVALID_CONFIG) if some process would have no row of a step."""
    if batch_size < processes:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"hyperparameters.batchSize: {batch_size} rows per optimizer step cannot be spread over"
            f" {processes} devices; create a run with a batchSize of at least {processes}, or with fewer"
            " devices",
        )
    return batch_size


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
    """Steps between validations; None to validate after each epoch. `epoch_steps` are those that are made."""
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
