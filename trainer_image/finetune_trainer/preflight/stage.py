# SPDX-License-Identifier: Apache-2.0
"""Run the stage: store the base model, tokenize the rows, and choose the hyperparameters."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from finetune_trainer.beneath import PathRefused
from finetune_trainer.contract.configs.preflight import PreflightConfig
from finetune_trainer.contract.custommetric import CustomMetricSource
from finetune_trainer.contract.evaluationtask import EvaluationTaskSource
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import PreflightResult
from finetune_trainer.contract.sharding import resolve_sharding
from finetune_trainer.manifest import Manifest
from finetune_trainer.model.load import context_length
from finetune_trainer.preflight.architecture import build_empty, check_adapter, load_config
from finetune_trainer.preflight.basemodelfetch import require_digest, store_model
from finetune_trainer.preflight.defaults import TOKEN_BUDGET, choose_hyperparameters, sequence_length
from finetune_trainer.preflight.estimate.prediction import NOT_PREDICTED, predict
from finetune_trainer.preflight.learningcurve import with_learning_curve
from finetune_trainer.preflight.lengths import TokenLengths, check_answers, warnings_of
from finetune_trainer.preflight.longrows import LongRows
from finetune_trainer.preflight.methoddata import check_form, check_sharding, resolve_preference
from finetune_trainer.preflight.modelfiles import invalid, model_files
from finetune_trainer.preflight.modelsource import MEBIBYTE, readable_model
from finetune_trainer.preflight.parentcheckpoint import continued_lora
from finetune_trainer.preflight.readback import check_read_back
from finetune_trainer.preflight.tokenizing import RowFiles, tokenize
from finetune_trainer.preflight.tokenreport import token_report, write_token_report
from finetune_trainer.rows import SPLIT_FILES, Row, count_rows, read_rows
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.scoring.scopesource import ScopeSource
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.evaluationtasks import open_tasks
from finetune_trainer.stage.judgeendpoint import judge_warnings
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.stage.metricsource import check_metric
from finetune_trainer.tokens.answers import make_encoder
from finetune_trainer.tokens.chattemplate import load_tokenizer, template_name
from finetune_trainer.tokens.reasoning import parser_for
from finetune_trainer.train.learningcurve.plan import require_validation_rows

logger = logging.getLogger(__name__)


def run(config: PreflightConfig, context: StageContext) -> PreflightResult:
    """Publish the base model, and resolve all settings of training.

    Raises StageFailure (BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, BASE_MODEL_DIGEST_MISMATCH,
    BASE_MODEL_MISMATCH, INVALID_CONFIG, INVALID_DATA, NO_TRAINING_ROWS, SEQUENCE_TOO_LONG,
    PREDICTED_OUT_OF_MEMORY, CUSTOM_METRIC_FAILED, ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, STORE_UNAVAILABLE,
    and for a remote base model what `RemoteSource` raises), Preempted.
    """
    dataset = ArtifactRef(kind="datasets", digest=config.dataset)
    data = context.store.artifact(dataset, verify=True)
    paths = {split: data / file for split, file in SPLIT_FILES.items()}
    rows = RowFiles(dataset, paths, {split: count_rows(path) for split, path in paths.items()})
    if not rows.counts["train"]:
        raise StageFailure(
            FailureReason.NO_TRAINING_ROWS,
            "the dataset has no training rows; add rows, or lower split.validation and split.test",
        )
    sources = tuple(
        CustomMetricSource(name=metric.name, digest=check_metric(metric).digest)
        for metric in config.custom_metrics
    )
    tasks = tuple(
        EvaluationTaskSource(name=wanted.name, digest=task.source.digest, rows=task.rows)
        for wanted, task in zip(config.tasks, open_tasks(config.tasks), strict=True)
    )
    check_form(next(read_rows(paths["train"])).form, config.method.type)
    check_sharding(config.sharding, config.method)
    _check_slices(config.slice_by, read_rows(paths["test"]))
    preference = resolve_preference(config.method, read_rows(paths["train"]))
    if config.learning_curve:
        require_validation_rows(rows.counts["validation"])
    if not rows.counts["validation"]:
        _check_validation_is_not_needed(config.hyperparameters)
    uri = config.base_model_uri
    with _readable(uri), readable_model(config, context) as found:
        source = found.folder
        files = model_files(source, uri)
        # Each byte is hashed, copied, and published by the store.
        total = 3 * sum((source / name).stat().st_size for name in files)
        meter = StageMeter(context, total + rows.cost, MEBIBYTE)
        model_config = load_config(source, uri)
        model = build_empty(model_config, uri)
        warnings = check_adapter(model, config.method, uri)
        tokenizer = load_tokenizer(source)
        held_out = ScopeSource(data, "test", tokenizer, config.chat_template_kwargs)
        held_out.find(config.metrics, config.options)
        read_back = check_read_back(uri, rows.paths, tokenizer, config.chat_template_kwargs)
        if found.stored is None:
            meter.begin("hashing the base model")
            manifest = Manifest.of(source, files, meter.add)
        else:
            manifest = context.store.manifest(found.stored)
            meter.add(manifest.total_bytes)
        require_digest(uri, manifest, config.base_model_digest, config.parent)
        lora = None
        if config.parent is not None:
            lora = continued_lora(config.parent, manifest.digest, config.method.lora, model, context)
            check_sharding(config.sharding, config.method.model_copy(update={"lora": lora}))
        store_model(uri, found, manifest, context, meter)
    encoder = make_encoder(config.method.type, tokenizer, config.chat_template_kwargs)
    tokens = tokenize(rows, encoder, context.store, meter)
    lengths = {split: TokenLengths.of(tokens.files, split) for split in rows.paths}
    parser = parser_for(tokenizer)
    longest_row = max(split.max_tokens for split in lengths.values())
    limit, processes = context_length(model_config), config.nodes * config.devices
    requested = config.hyperparameters
    max_length = sequence_length(requested.max_sequence_length, config.method.type, longest_row, limit)
    long_rows = LongRows(lengths, max_length, requested.on_long_rows)
    with context.store.run_folder(config.run, config.stage) as folder:
        report_uri = write_token_report(folder, token_report(uri.partition("?")[0], long_rows))
    long_rows.check(limit, report_uri)
    if long_rows.truncates:
        check_answers(lengths, max_length, limit, report_uri)
    if long_rows.dropped and preference is not None:
        kept = tokens.files.rows("train", max_length, drops_longer=True)
        preference = resolve_preference(config.method, kept)
    used = long_rows.used_lengths
    chosen = choose_hyperparameters(
        requested,
        config.method.type,
        train_rows=len(used),
        longest_row_tokens=longest_row,
        max_sequence_length=max_length,
        hidden_size=model_config.get_text_config().hidden_size,
        processes=processes,
        sharded=resolve_sharding(config.sharding, config.method, processes),
        token_budget=TOKEN_BUDGET if config.device and config.device.memory_bytes else None,
        train_tokens=int(used.sum()),
    )
    _check_keep_steps(config.keep_steps, chosen.total_steps)
    chosen = chosen.model_copy(update={"on_long_rows": long_rows.resolved})
    meter.begin("predicting memory and duration")
    method = config.method if lora is None else config.method.model_copy(update={"lora": lora})
    chosen, prediction = predict(config, method, model, chosen, used.tolist())
    prediction = with_learning_curve(config, prediction, len(used))
    logger.info("hyperparameters: %s", chosen.to_json())
    return PreflightResult(
        base_model=manifest.digest,
        base_model_revision=found.revision,
        hyperparameters=chosen,
        lora=lora,
        preference=preference,
        chat_template=template_name(tokenizer),
        reasoning_parser=parser.name if parser is not None else None,
        warnings=(
            *warnings,
            *warnings_of(lengths),
            *read_back,
            *long_rows.warnings,
            *judge_warnings(config.judges),
            *(() if prediction is not None else (NOT_PREDICTED,)),
        ),
        train_rows=len(used),
        train_tokens=int(used.sum()),
        longest_row_tokens=longest_row,
        truncated_rows=long_rows.truncated,
        dropped_rows=long_rows.dropped,
        dropped_percent=round(100 * long_rows.dropped_share, 2),
        report_uri=report_uri,
        prediction=prediction,
        tokens=tokens.digest,
        custom_metrics=sources,
        tasks=tasks,
    )


def _check_slices(column: str | None, rows: Iterable[Row]) -> None:
    """Raise StageFailure (INVALID_CONFIG) if no row has a value of the column; None: there are no slices."""
    if column is None or any(name == column for row in rows for name, _ in row.columns):
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"evaluation.sliceBy names {column}, which no row of the test split has: add it to keepColumns of the"
        " Dataset, or remove sliceBy, and create a new run",
    )


def _check_validation_is_not_needed(requested: RequestedHyperparameters) -> None:
    """Raise StageFailure (INVALID_CONFIG) for hyperparameters that need validation rows."""
    if requested.early_stopping_patience is not None:
        field, purpose = "earlyStoppingPatience", "early stopping"
    elif requested.validate_every_steps is not None:
        field, purpose = "validateEverySteps", "validation"
    else:
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"hyperparameters.{field}: {purpose} needs validation rows, but the dataset has none; raise"
        f" split.validation, or remove {field}",
    )


def _check_keep_steps(keep_steps: tuple[int, ...], total_steps: int) -> None:
    """Raise StageFailure (INVALID_CONFIG) for steps that the run never reaches."""
    beyond = [step for step in sorted(keep_steps) if step > total_steps]
    if beyond:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"checkpoints.keepSteps: {', '.join(map(str, beyond))} cannot be kept, because the run has only"
            f" {total_steps} steps; create a run with steps up to {total_steps}",
        )


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except PathRefused as refusal:
        raise invalid(uri, str(refusal)) from refusal
    except OSError as error:
        raise invalid(uri, f"{error}; check that uid 65532 may read the files") from error
