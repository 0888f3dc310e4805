# SPDX-License-Identifier: Apache-2.0
"""Run the stage: find the source, prepare and validate its rows, publish them, and write the report."""

import dataclasses
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import DataStatistics, Difference, PrepareResult, SplitRecord
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.files import FileUnreadable, SourceFile
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.result import Prepared, RowProblem
from finetune_trainer.data.rowproblems import QUOTED, RowPosition
from finetune_trainer.data.textchecks import field_names
from finetune_trainer.data.unpacking import TooLarge
from finetune_trainer.manifest import digest_of
from finetune_trainer.prepare.finding import unreadable
from finetune_trainer.prepare.problemlog import AlikeLog, ProblemLog
from finetune_trainer.prepare.recipe import preparation_digest, recipe_of
from finetune_trainer.prepare.rowsource import open_source, without_query
from finetune_trainer.prepare.sensitivehashes import publish_hashes
from finetune_trainer.report.document import document, encode
from finetune_trainer.report.htmlpage import page
from finetune_trainer.rows import SPLIT_FILES
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.runtime.progressmeter import ProgressMeter
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import RunFolder

REPORT_NAME: Final = "report.json"
PAGE_NAME: Final = "report.html"
MAX_SHOWN_PROBLEMS: Final = 10
MAX_SHOWN_CHARACTERS: Final = 200
MAX_UNREAD_FIELDS: Final = 10

logger = logging.getLogger(__name__)


def run(config: PrepareConfig, context: StageContext) -> PrepareResult:
    """Publish the source as a dataset: three split files with one canonical JSON line per row.

    Kept rows keep the order of the source. Even for rejected rows, the run's folder gets the report,
    as JSON and as a page, every problem in `problems.jsonl`, and all pairs of similar rows in `alike.jsonl`.
    If the source still has the version that the config names, nothing is prepared.
    Raises StageFailure (SOURCE_NOT_FOUND, INVALID_DATA, NO_TRAINING_ROWS, INVALID_CONFIG,
    STORE_UNAVAILABLE, and for a remote source what `RemoteSource` raises), Preempted.
    """
    recipe = recipe_of(config)
    source = open_source(config, context.stop)
    if source.version is not None and source.version == config.unless_version:
        logger.info("%s has not changed", without_query(config.source_uri))
        return PrepareResult(source_version=source.version, unchanged=True)
    with (
        context.store.run_folder(config.run, config.stage) as folder,
        source.readable(folder) as files,
        context.store.staging() as staging,
    ):
        with ProblemLog(folder) as log, AlikeLog(folder) as alike:
            prepared = _prepare(config, context, files, recipe=recipe, folder=staging, logs=(log, alike))
        report = _Report(folder, config, prepared, log)
        result = _result(config, prepared, files, report.page_uri).model_copy(
            update={"source_revision": source.revision, "source_version": source.version}
        )
        try:
            _validate(config, prepared, result, log.uri)
        except StageFailure:
            report.write()
            raise
        digest = context.store.publish("datasets", staging)
        publish_hashes(context.store, digest, prepared.sensitive)
        splits = _split_records(context, digest, prepared.split_rows)
        report.write(digest, splits)
    _log_summary(prepared)
    return result.model_copy(update={"dataset": digest, "splits": splits})


class _Listener:
    """Report the number of rows to the operator, log problems, and stop with the pod."""

    def __init__(
        self,
        meter: ProgressMeter,
        total_bytes: int,
        logs: tuple[ProblemLog, AlikeLog],
        stop: threading.Event,
    ) -> None:
        self._meter = meter
        self._rows = 0
        self._total_bytes = total_bytes
        self._stop = stop
        self.problem, self.duplicate = logs[0].add, logs[1].add

    def rows(self, count: int, bytes_read: int) -> None:
        """Count rows. The total is estimated from the bytes read so far."""
        if self._stop.is_set():
            raise Preempted
        self._rows += count
        total = max(self._rows, round(self._rows * self._total_bytes / max(bytes_read, 1)))
        self._meter.add(count, total)


def _prepare(
    config: PrepareConfig,
    context: StageContext,
    files: list[SourceFile],
    *,
    recipe: Recipe,
    folder: Path,
    logs: tuple[ProblemLog, AlikeLog],
) -> Prepared:
    total_bytes = sum(file.size for file in files)
    meter = ProgressMeter(0, "{} of about {} rows".format, context.reporter)
    try:
        prepared = prepare(
            files,
            recipe,
            folder,
            listener=_Listener(meter, total_bytes, logs, context.stop),
            previous=_previous(config, context),
            limit_bytes=config.max_unpacked_bytes,
        )
    except FileUnreadable as error:
        raise unreadable(without_query(config.source_uri), error) from error
    except TooLarge as error:
        message = f"{without_query(config.source_uri)}: {error}"
        raise StageFailure(FailureReason.SOURCE_TOO_LARGE, message, ExitCode.BAD_DATA) from error
    meter.end()
    return prepared


def _previous(config: PrepareConfig, context: StageContext) -> tuple[str, list[Path]] | None:
    """The digest and files of the previous version; None if the store no longer has it."""
    if config.previous is None:
        return None
    ref = ArtifactRef(kind="datasets", digest=config.previous)
    if not context.store.has(ref):
        logger.warning("the store no longer has %s; the report has no comparison with it", config.previous)
        return None
    folder = context.store.artifact(ref)
    return config.previous, [folder / name for name in SPLIT_FILES.values()]


class _Report:
    """The report in the run's folder. A later attempt replaces it."""

    def __init__(self, folder: RunFolder, config: PrepareConfig, prepared: Prepared, log: ProblemLog) -> None:
        self._folder = folder
        self._source = without_query(config.source_uri)
        self._prepared = prepared
        self._log = log.uri
        self.page_uri = f"{folder.uri}/{PAGE_NAME}"

    def write(self, digest: Digest | None = None, splits: tuple[SplitRecord, ...] = ()) -> None:
        """Write the report as JSON and as a page. Raises StageFailure (STORE_UNAVAILABLE)."""
        report = document(
            self._prepared,
            source=self._source,
            digest=digest,
            split_digests={split.name: split.digest for split in splits},
            problem_log=self._log,
        )
        self._folder.write(REPORT_NAME, encode(report))
        self._folder.write(PAGE_NAME, page(report).encode())


def _result(
    config: PrepareConfig, prepared: Prepared, files: list[SourceFile], page_uri: str
) -> PrepareResult:
    statistics, difference = prepared.statistics, prepared.difference
    prompts, completions = statistics.prompt_characters, statistics.completion_characters
    return PrepareResult(
        source=digest_of(canonical.encode([[file.name, file.digest] for file in files])),
        preparation=preparation_digest(config, prepared.recipe, prepared.format),
        format=prepared.format,
        statistics=DataStatistics(
            source_rows=prepared.rows,
            invalid_rows=prepared.invalid_rows,
            duplicate_rows=statistics.duplicate_rows,
            near_duplicate_rows=statistics.near_duplicate_rows or 0,
            leaked_rows=statistics.leaked_rows,
            conflicting_rows=statistics.conflicting_rows,
            prompt_characters_mean=round(prompts.mean, 1),
            prompt_characters_max=prompts.max,
            completion_characters_mean=round(completions.mean, 1),
            completion_characters_max=completions.max,
            distinct_completions=statistics.distinct_completions,
            untested_answers=prepared.untested_answers,
        ),
        problem_count=prepared.error_count,
        problems=_shown(prepared, "error"),
        warning_count=prepared.warning_count,
        warnings=_shown(prepared, "warning"),
        report_uri=page_uri,
        difference=None if difference is None else Difference(**dataclasses.asdict(difference)),
        rule_version=prepared.recipe.rule_version,
        unread_fields=prepared.unread_fields[:MAX_UNREAD_FIELDS],
        group_by=prepared.recipe.division.group_by,
    )


def _validate(config: PrepareConfig, prepared: Prepared, result: PrepareResult, log_uri: str) -> None:
    """Raise StageFailure (INVALID_DATA, NO_TRAINING_ROWS) if the rows must not be trained on."""
    if prepared.invalid_rows or prepared.broken_files or not prepared.rows:
        _check_invalid_rows(config, prepared, result, log_uri)
    if prepared.split_rows["train"]:
        return
    statistics, rows = prepared.statistics, prepared.split_rows
    raise StageFailure(
        FailureReason.NO_TRAINING_ROWS,
        f"no training rows are left: of {prepared.rows} rows, {prepared.invalid_rows} are invalid,"
        f" {statistics.duplicate_rows} are duplicates, {rows['validation']} are in validation"
        f" ({config.split.validation:g}) and {rows['test']} in test ({config.split.test:g}). Add rows, lower"
        " split.validation and split.test, or set another split.seed.",
        ExitCode.BAD_DATA,
        prepare=result,
    )


def _check_invalid_rows(
    config: PrepareConfig, prepared: Prepared, result: PrepareResult, log_uri: str
) -> None:
    invalid, rows = prepared.invalid_rows, prepared.rows
    share = invalid / rows if rows else 1.0
    if prepared.broken_files:
        what, fix = "the source cannot be read to its end", "Correct the source"
    elif not rows:
        what, fix = "the source has no rows", "Add rows"
    elif config.on_invalid_rows == "Fail":
        what = f"{invalid} of {rows} rows are invalid"
        fix = "Correct the rows, or set onInvalidRows: Drop"
    elif config.max_invalid_fraction is not None and share > config.max_invalid_fraction:
        what = (
            f"{invalid} of {rows} rows ({share:.1%}) are invalid, more than maxInvalidFraction"
            f" {config.max_invalid_fraction:g}"
        )
        fix = "Correct the rows, or raise maxInvalidFraction"
    else:
        return
    first = "; ".join(result.problems[:3])
    raise StageFailure(
        FailureReason.INVALID_DATA,
        f"{what}: {first}. {fix}. All problems: {log_uri}; as a page: {result.report_uri}.",
        ExitCode.BAD_DATA,
        prepare=result,
    )


def _shown(prepared: Prepared, severity: str) -> tuple[str, ...]:
    found = [problem for problem in prepared.problems if problem.issue.severity == severity]
    # Problems of all rows together are last in the list, but must not be cut off: show them first.
    found.sort(key=lambda problem: problem.position != RowPosition())
    return tuple(_text(problem) for problem in found[:MAX_SHOWN_PROBLEMS])


def _text(problem: RowProblem) -> str:
    issue, position = problem.issue, problem.position
    is_summary = issue.severity == "warning" and position.file is None and position.record is None
    text = issue.public if is_summary else f"{position}: {issue.public}"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def _split_records(
    context: StageContext, digest: Digest, rows: Mapping[SplitName, int]
) -> tuple[SplitRecord, ...]:
    manifest = context.store.manifest(ArtifactRef(kind="datasets", digest=digest))
    hashes = {file.path: file.sha256 for file in manifest.files}
    return tuple(
        SplitRecord(name=name, rows=rows[name], digest=f"sha256:{hashes[file]}")
        for name, file in SPLIT_FILES.items()
    )


def _log_summary(prepared: Prepared) -> None:
    splits = ", ".join(f"{name} {count}" for name, count in prepared.split_rows.items())
    duplicates = prepared.statistics.duplicate_rows
    logger.info("%d rows: %s; %d duplicates removed", prepared.rows, splits, duplicates)
    if prepared.invalid_rows:
        logger.warning("%d invalid rows were dropped", prepared.invalid_rows)
    if prepared.unused_fields:
        names = QUOTED.sub(r"\2", field_names(prepared.unused_fields, "of the rows"))
        logger.warning("unused fields: %s", names)
    for text in _shown(prepared, "warning"):
        logger.warning("%s", text)
