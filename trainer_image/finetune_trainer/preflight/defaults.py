"""The hyperparameters that the user left open, chosen once by these rules and then recorded.

epochs
    OpenAI's rule for fine-tuning jobs: 3; but for fewer than 34 rows as many as make 100 row visits, at most
    25, and for more than 8,333 rows as many as make 25,000 row visits, at least 1.
learningRate
    5e-5 for Full and ten times that for LoRA, times (2000 / hidden size) ^ p, where p is 0.781 or 0.0775: the
    fits over the Llama and the Qwen models from J. Schulman et al., "LoRA Without Regret", 2025, with the
    constants of its authors' tinker-cookbook. Of the two the lower rate, because one that is too high costs
    more. For LoRA that is 5.5e-4 at a hidden size of 640 (270 million parameters) and 2.9e-4 at 4,096
    (8 billion); QLoRA, which learns as LoRA does (Dettmers et al., "QLoRA", 2023), has the same.
    DPO 5e-6 and ORPO 8e-5, as TRL's scripts for them have it with an adapter (trl/scripts/dpo.py, and
    examples/scripts/orpo.py: ten times the 8e-6 of Hong et al., "ORPO", 2024); KTO 5e-6, the upper end of
    what TRL's page on it recommends for all weights, at the same beta of 0.1. They move a model that answers
    well already by little; one that is small, or whose answers are to change much, needs more.
maxSequenceLength
    The smallest multiple of 64 that holds the longest row, at most 2,048 and what the model can read.
perDeviceBatchSize, gradientAccumulationSteps
    8 rows an optimizer step in all, of all processes together, or one for each process where those are more.
    Of a process's rows as many at once as fit into 8,192 tokens, rounded down to a power of two; the rest is
    accumulated. A row of DPO, KTO or ORPO counts twice, since two sequences are read for it. In a batch of
    KTO at least 2: it estimates how far the model has moved from answers to other prompts.
seed
    42.
saveEverySteps
    A tenth of all steps, at least 10: a pod that is killed repeats at most so many.
earlyStoppingPatience
    None: no run ends before its last epoch unless it was asked to.
gradientCheckpointing
    False: it costs time, and whether memory is short is not known before training.
"""

from typing import Final

from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.methods import METHODS, MethodInfo, MethodType
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
MAX_DEFAULT_SEQUENCE_LENGTH: Final = 2048

ROWS_PER_STEP: Final = 8
MAX_BATCH_TOKENS: Final = 8192

SEED: Final = 42
MIN_STEPS_BETWEEN_SAVES: Final = 10


def choose_hyperparameters(
    wanted: RequestedHyperparameters,
    method: MethodType,
    *,
    train_rows: int,
    longest_row_tokens: int,
    hidden_size: int,
    context_length: int | None,
    processes: int = 1,
) -> Hyperparameters:
    """Everything a run needs: what the user gave, and the rules' choice for the rest.

    Raises StageFailure (INVALID_CONFIG) for a maxSequenceLength that the model cannot read, and for a
    perDeviceBatchSize that the method cannot work with.
    """
    info = METHODS[method]
    fewest = info.min_batch_rows
    if wanted.per_device_batch_size is not None and wanted.per_device_batch_size < fewest:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"hyperparameters.perDeviceBatchSize: {wanted.per_device_batch_size}, but {method} needs at least"
            f" {fewest} rows at once, to compare each with the answer of another; raise it, or leave it out",
        )
    length = _sequence_length(wanted.max_sequence_length, longest_row_tokens, context_length)
    most = _most_at_once(train_rows, processes)
    batch = wanted.per_device_batch_size or max(fewest, _batch_size(info.sequences_per_row * length, most))
    accumulation = wanted.gradient_accumulation_steps or max(1, ROWS_PER_STEP // (batch * processes))
    epochs = wanted.epochs or _epochs(train_rows)
    total = epochs * steps_per_epoch(train_rows, batch, accumulation, processes)
    return Hyperparameters(
        epochs=epochs,
        learning_rate=wanted.learning_rate or _learning_rate(info, hidden_size),
        per_device_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_sequence_length=length,
        seed=SEED if wanted.seed is None else wanted.seed,
        total_steps=total,
        save_every_steps=wanted.save_every_steps or max(MIN_STEPS_BETWEEN_SAVES, total // 10),
        early_stopping_patience=wanted.early_stopping_patience,
        gradient_checkpointing=wanted.gradient_checkpointing or False,
        processes=processes,
    )


def _epochs(rows: int) -> int:
    if rows * DEFAULT_EPOCHS < MIN_TRAINING_EXAMPLES:
        return min(MAX_EPOCHS, MIN_TRAINING_EXAMPLES // rows)
    if rows * DEFAULT_EPOCHS > MAX_TRAINING_EXAMPLES:
        return max(1, MAX_TRAINING_EXAMPLES // rows)
    return DEFAULT_EPOCHS


def _learning_rate(method: MethodInfo, hidden_size: int) -> float:
    if not method.scales_with_width:
        return method.learning_rate
    ratio = REFERENCE_HIDDEN_SIZE / hidden_size
    rate = method.learning_rate * min(ratio**exponent for exponent in HIDDEN_SIZE_EXPONENTS)
    return float(f"{rate:.1e}")


def _sequence_length(wanted: int | None, longest: int, context_length: int | None) -> int:
    if wanted is not None:
        if context_length is not None and wanted > context_length:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"hyperparameters.maxSequenceLength: {wanted} is more than the {context_length} tokens that"
                " the base model can read; lower it, or leave it out",
            )
        return wanted
    rounded = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return min(rounded, MAX_DEFAULT_SEQUENCE_LENGTH, context_length or MAX_DEFAULT_SEQUENCE_LENGTH)


def _most_at_once(rows: int, processes: int) -> int:
    """Rows of a process, so that each of several has some."""
    if processes == 1:
        return ROWS_PER_STEP
    return max(1, min(ROWS_PER_STEP, rows) // processes)


def _batch_size(length: int, most: int) -> int:
    fitting = max(1, min(most, MAX_BATCH_TOKENS // length))
    return 1 << (fitting.bit_length() - 1)
