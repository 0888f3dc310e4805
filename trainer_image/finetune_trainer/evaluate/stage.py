"""The evaluate stage: computes each metric of each subject on the held-out split."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, set_seed

from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import EvaluateResult, Score
from finetune_trainer.contract.vocabulary import FULL_MODEL, Subject
from finetune_trainer.evaluate.examples import Example, encode_examples
from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.evaluate.metrics.registry import MEASURES
from finetune_trainer.model.device import choose_device
from finetune_trainer.model.load import load_adapter, load_base
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.tokens.chattemplate import load_tokenizer, stop_token_ids

logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, context: StageContext) -> EvaluateResult:
    """Evaluate each subject; the same config gives the same scores.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
    INVALID_DATA, STORE_UNAVAILABLE), Preempted.
    """
    store = context.store
    data = store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    rows = load_rows(data / SPLIT_FILES[config.split])
    if not rows:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the dataset has no {config.split} rows to evaluate; raise split.{config.split}",
        )
    checkpoint = store.artifact(ArtifactRef(kind="checkpoints", digest=config.checkpoint), verify=True)
    base = store.artifact(ArtifactRef(kind="models", digest=config.base_model))
    device = choose_device()
    set_seed(config.seed)
    tokenizer = load_tokenizer(base)
    examples = encode_examples(
        rows, tokenizer, config.max_sequence_length, config.split, config.chat_template_kwargs
    )
    _check(examples, config)
    meter = StageMeter(context, len(examples) * len(config.subjects) * len(config.metrics))
    scores: list[Score] = []
    for subject, model in _subjects(config, base, checkpoint, device):
        measured = MeasuredModel(
            model,
            examples,
            tokenizer,
            stop_token_ids(tokenizer, model.generation_config),
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            meter=meter,
        )
        for metric in config.metrics:
            meter.begin(f"{metric} of {subject} on {len(examples)} {config.split} rows")
            value = MEASURES[metric](measured)
            logger.info("%s of %s: %.4f", metric, subject, value)
            scores.append(Score(metric=metric, subject=subject, value=value, rows=len(examples)))
    return EvaluateResult(checkpoint=config.checkpoint, split=config.split, scores=tuple(scores))


def _check(examples: list[Example], config: EvaluateConfig) -> None:
    """Raise StageFailure (INVALID_CONFIG) if the rows lack what the metrics need."""
    if not examples:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"the dataset has no {config.split} rows with the label true, and only those have a correct"
            f" answer to compare with; raise split.{config.split}, or add such rows",
        )
    pairs = next((metric for metric in config.metrics if METRICS[metric].needs_pairs), None)
    if pairs is not None and any(example.rejected is None for example in examples):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"evaluation.metrics: {pairs} needs rows with a chosen and a rejected answer (format Preference);"
            " remove it, also from evaluation.gates",
        )


def _subjects(
    config: EvaluateConfig, base: Path, checkpoint: Path, device: torch.device
) -> Iterator[tuple[Subject, PreTrainedModel | PeftModel]]:
    """Yield each subject with its model; advancing to the next subject invalidates the previous model."""
    if config.checkpoint_type == FULL_MODEL:
        folders: dict[Subject, Path] = {"Tuned": checkpoint, "Base": base}
        for subject in config.subjects:
            yield subject, load_base(folders[subject], None, device)
        return
    model = load_adapter(load_base(base, None, device), checkpoint)
    for subject in config.subjects:
        if subject == "Tuned":
            yield subject, model
        else:
            with model.disable_adapter():
                yield subject, model
