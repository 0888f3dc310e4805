# SPDX-License-Identifier: Apache-2.0
"""Run the stage: store the base model, tokenize the rows, and choose the hyperparameters."""

import logging
from collections.abc import Iterable, Iterator

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.method import TYPES, resolve_sharding
from finetune_trainer.contract.metrics import METRICS, Metric
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import PreflightResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.data.duplicates import Leaks
from finetune_trainer.model.device import check_card
from finetune_trainer.model.loading import context_length
from finetune_trainer.preflight.base_model import (
    MEBIBYTE,
    convert_file_errors,
    open_model,
    store_model,
)
from finetune_trainer.preflight.defaults import TOKEN_BUDGET, choose_hyperparameters, sequence_length
from finetune_trainer.preflight.estimate.prediction import NOT_PREDICTED, add_curve_duration, predict
from finetune_trainer.preflight.method_checks import (
    build_empty,
    check_adapter,
    check_method,
    check_sharding,
    continued_lora,
    load_config,
    resolve_preference,
)
from finetune_trainer.preflight.readback import check_read_back
from finetune_trainer.preflight.row_lengths import (
    LongRows,
    TokenLengths,
    check_answers,
    count_of,
    first_of,
    row_warnings,
    token_report,
    write_token_report,
)
from finetune_trainer.preflight.tokenization import RowFiles, measure_rows, tokenize
from finetune_trainer.rows import LEARNED_FROM, Row, count_rows, read_rows, split_paths
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.metric_scope import ScopeSource
from finetune_trainer.stage.context import StageContext, StageMeter
from finetune_trainer.stage.judge_endpoint import judge_warnings
from finetune_trainer.stage.own_metrics import metric_sources, open_tasks, task_sources
from finetune_trainer.tokens.chat_template import load_tokenizer, template_name
from finetune_trainer.tokens.encoding import evaluation_encoder, make_encoder
from finetune_trainer.tokens.reasoning import parser_for
from finetune_trainer.tokens.token_files import MAX_NAMED_ROWS, FoundRows
from finetune_trainer.train.inputs import leaks_of
from finetune_trainer.train.learning_curve_plan import require_validation_rows

logger = logging.getLogger(__name__)


def run(config: PreflightConfig, context: StageContext) -> PreflightResult:
    """Publish the base model, and resolve all settings of training.

    Raises StageFailure (BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, BASE_MODEL_DIGEST_MISMATCH,
    BASE_MODEL_MISMATCH, INVALID_CONFIG, INVALID_DATA, NO_TRAINING_ROWS, SEQUENCE_TOO_LONG,
    PREDICTED_OUT_OF_MEMORY, UNSUPPORTED_DEVICE, CUSTOM_METRIC_FAILED, ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT,
    STORE_UNAVAILABLE, and for a remote base model what `RemoteSource` raises), Preempted.
    """
    check_card(config.device)
    rows = _row_files(config.dataset, context)
    paths = rows.paths
    if not rows.counts["train"]:
        raise StageFailure(
            FailureReason.NO_TRAINING_ROWS,
            "the dataset has no training rows; add rows, or lower split.validation and split.test",
        )
    sources = metric_sources(config.custom_metrics)
    tasks = task_sources(config.tasks, open_tasks(config.tasks))
    # By default the rows that the run is evaluated on are of the dataset that it trains on.
    held_out = rows if config.test_dataset is None else _row_files(config.test_dataset, context)
    leaks = leaks_of(config, context.store)
    usable = {split: rows.counts[split] - len(leaks.rows[split]) for split in LEARNED_FROM}
    if not usable["train"]:
        raise StageFailure(
            FailureReason.NO_TRAINING_ROWS,
            "each training row is the same as a row of evaluation.dataset, or nearly the same: name a Dataset"
            " with other rows",
        )
    method = config.method.resolved()
    check_method(method, next(read_rows(paths["train"])).form)
    check_sharding(config.sharding, method)
    test_rows = held_out.paths[config.test_split]
    _check_slices(config.slice_by, read_rows(test_rows))
    _check_pairs(config.metrics, read_rows(test_rows))
    preference = resolve_preference(method, read_rows(paths["train"]))
    if config.learning_curve:
        require_validation_rows(usable["validation"])
    if not usable["validation"]:
        _check_validation_is_not_needed(config.hyperparameters)
    uri = config.base_model_uri
    with open_model(config, context) as base_model:
        others = 0 if held_out is rows else held_out.cost_of(config.test_split)
        meter = StageMeter(context, base_model.work + rows.cost + others, MEBIBYTE)
        with convert_file_errors(uri):
            model_config = load_config(base_model.folder, uri)
            model = build_empty(model_config, uri)
            warnings = check_adapter(model, method, uri)
            tokenizer = load_tokenizer(base_model.folder)
            scope = ScopeSource(test_rows.parent, config.test_split, tokenizer, config.chat_template_kwargs)
            scope.find(config.metrics, config.options)
            read_back = check_read_back(uri, rows.paths, tokenizer, config.chat_template_kwargs)
        if config.parent is not None:
            recorded = config.base_model_digest or ""
            adapter = continued_lora(config.parent, recorded, config.method.lora, model, context)
            if adapter is not None:
                method = method.model_copy(update={"lora": adapter})
                check_sharding(config.sharding, method)
        encoder = make_encoder(method.objective, tokenizer, config.chat_template_kwargs)
        tokens = tokenize(rows, encoder, context.store, meter)
        lengths = {
            split: TokenLengths.of(tokens.files, split, leaks.rows.get(split, ())) for split in rows.paths
        }
        if held_out is not rows:
            first = next(read_rows(test_rows), None)
            encoder = evaluation_encoder(first, tokenizer, config.chat_template_kwargs)
            lengths["test"] = measure_rows(held_out, config.test_split, encoder, meter)
        parser = parser_for(tokenizer)
        longest_row = max(split.max_tokens for split in lengths.values())
        limit, processes = context_length(model_config), config.nodes * config.devices
        requested = config.hyperparameters
        max_length = sequence_length(requested.max_sequence_length, method.objective, longest_row, limit)
        evaluated = "the test split" if held_out is rows else "evaluation.dataset"
        long_rows = LongRows(lengths, max_length, requested.on_long_rows, evaluated)
        with context.store.run_folder(config.run, config.stage) as folder:
            report_uri = write_token_report(folder, token_report(uri.partition("?")[0], long_rows))
        long_rows.check(limit, report_uri)
        if long_rows.truncates:
            check_answers(lengths, max_length, limit, report_uri)
        if (long_rows.dropped or leaks.count) and preference is not None:
            kept = tokens.files.rows(
                "train", max_length, drops_longer=bool(long_rows.dropped), without=leaks.rows["train"]
            )
            preference = resolve_preference(method, kept)
        used = long_rows.used_lengths
        chosen = choose_hyperparameters(
            requested,
            method,
            train_rows=len(used),
            longest_row_tokens=longest_row,
            max_sequence_length=max_length,
            hidden_size=model_config.get_text_config().hidden_size,
            processes=processes,
            sharded=resolve_sharding(config.sharding, method, processes),
            token_budget=TOKEN_BUDGET if config.device and config.device.memory_bytes else None,
            train_tokens=int(used.sum()),
        )
        _check_keep_steps(config.keep_steps, chosen.total_steps)
        chosen = chosen.model_copy(update={"on_long_rows": long_rows.resolved})
        meter.begin("predicting memory and duration")
        chosen, prediction = predict(config, method, model, chosen, used.tolist())
        prediction = add_curve_duration(config, prediction, len(used), chosen)
        logger.info("hyperparameters: %s", chosen.to_json())
        # Weights are downloaded only for a run that this machine or cluster can carry out.
        manifest = store_model(base_model, config, context, meter)
    return PreflightResult(
        base_model=manifest.digest,
        base_model_revision=base_model.revision,
        hyperparameters=chosen,
        lora=method.lora if TYPES[method.type].trains_adapter else None,
        preference=preference,
        chat_template=template_name(tokenizer),
        reasoning_parser=parser.name if parser is not None else None,
        warnings=(
            *warnings,
            *row_warnings(lengths),
            *read_back,
            *long_rows.warnings,
            *_leak_warnings(leaks),
            *judge_warnings(config.judges),
            *(() if prediction is not None else (NOT_PREDICTED,)),
        ),
        train_rows=len(used),
        train_tokens=int(used.sum()),
        longest_row_tokens=longest_row,
        truncated_rows=long_rows.truncated,
        leaked_rows=leaks.count,
        dropped_rows=long_rows.dropped,
        dropped_percent=round(100 * long_rows.dropped_share, 2),
        report_uri=report_uri,
        prediction=prediction,
        tokens=tokens.digest,
        custom_metrics=sources,
        tasks=tasks,
    )


def _row_files(digest: Digest, context: StageContext) -> RowFiles:
    """The files of a dataset, whose content is verified."""
    dataset = ArtifactRef(kind="datasets", digest=digest)
    paths = split_paths(context.store.artifact(dataset, verify=True))
    return RowFiles(dataset, paths, {split: count_rows(path) for split, path in paths.items()})


def _leak_warnings(leaks: Leaks) -> Iterator[str]:
    """Yield what the user should know of rows that are left out of training."""
    if leaks.count:
        nearly = f" ({leaks.near} of them nearly)" if leaks.near else ""
        verb = "has" if leaks.count == 1 else "have"
        found = {
            split: FoundRows(len(numbers), [(number, "") for number in numbers[:MAX_NAMED_ROWS]])
            for split, numbers in leaks.rows.items()
        }
        yield (
            f"{count_of(leaks.count)} of training and validation {verb} the input of a row of"
            f" evaluation.dataset{nearly} and will not be used ({first_of(found)}): find out where they come"
            " from, if there are many"
        )
    if leaks.unsearched:
        yield (
            f"{count_of(leaks.unsearched)} {'was' if leaks.unsearched == 1 else 'were'} not searched for rows"
            " that are nearly the same as one of evaluation.dataset, because that would take too much memory:"
            " of these, only rows with the same input are left out"
        )


def _check_pairs(metrics: Iterable[Metric], rows: Iterable[Row]) -> None:
    """Raise StageFailure (INVALID_CONFIG) if a metric compares the answers of pairs and a row is none."""
    pairs = next((metric for metric in metrics if "pairs" in METRICS[metric].needs), None)
    if pairs is not None and any(row.rejected is None for row in rows):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"evaluation.metrics: {pairs} needs rows with a chosen and a rejected answer (format Preference);"
            " remove it, also from evaluation.gates, or name a Dataset with pairs in evaluation.dataset",
        )


def _check_slices(column: str | None, rows: Iterable[Row]) -> None:
    """Raise StageFailure (INVALID_CONFIG) if no row has a value of the column; None: there are no slices."""
    if column is None or any(name == column for row in rows for name, _ in row.columns):
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"evaluation.sliceBy names {column}, which no measured row has: add it to keepColumns of the"
        " Dataset, or remove sliceBy, and create a new run",
    )


def _check_validation_is_not_needed(requested: RequestedHyperparameters) -> None:
    """Raise StageFailure (INVALID_CONFIG) for settings that need validation rows."""
    if requested.early_stopping_patience is not None:
        field, purpose = "earlyStoppingPatience", "early stopping"
    elif requested.validate_every_steps is not None:
        field, purpose = "everySteps", "validation"
    else:
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"validation.{field}: {purpose} needs validation rows, but the dataset has none; raise"
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
