# SPDX-License-Identifier: Apache-2.0
"""The prepare stage: finds the sources, prepares and validates their rows, and publishes them with a report.

It also publishes hashes of the dataset's secrets and personal data, and writes logs of problems and of
similar rows to the run's folder.
"""

import io
import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from finetune_trainer import canonical_json
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import PrepareConfig
from finetune_trainer.contract.references import ArtifactRef, strip_query
from finetune_trainer.contract.results import (
    DataStatistics,
    Difference,
    PrepareResult,
    SourceDifference,
    SourceResult,
    SplitRecord,
)
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, SplitName
from finetune_trainer.data.files import FileUnreadable, TooLarge
from finetune_trainer.data.pipeline import prepare_sources
from finetune_trainer.data.reading import SourceFiles
from finetune_trainer.data.result import (
    SENSITIVE_FILE,
    SENSITIVE_VALUES,
    DuplicatePair,
    Prepared,
    RowChanges,
    RowProblem,
    SensitiveHashes,
    SourceSummary,
)
from finetune_trainer.data.row_problems import QUOTED, RowPosition, field_names
from finetune_trainer.data.version_comparison import EarlierVersion
from finetune_trainer.manifest import digest_of
from finetune_trainer.prepare.recipe import preparation_digest, recipes_of
from finetune_trainer.prepare.row_sources import Rows, open_sources, unreadable_failure
from finetune_trainer.report.document import document, duplicate_record, encode, problem_record
from finetune_trainer.report.html_page import page
from finetune_trainer.report.verdicts import DATASET_CODES
from finetune_trainer.rows import SPLIT_FILES, split_paths
from finetune_trainer.runtime.progress import ProgressMeter
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import DerivedRef, RunFolder, Store


def publish_hashes(store: Store, dataset: Digest, sensitive: SensitiveHashes) -> None:
    """Publish the hashes as derived from the dataset, so that its digest does not depend on them.

    Those of the newest preparation count. A dataset that never had any gets no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """
    of = ArtifactRef(kind="datasets", digest=dataset)
    if not sensitive.hashes and store.derived(of, SENSITIVE_VALUES) is None:
        return
    with store.staging() as staging:
        (staging / SENSITIVE_FILE).write_bytes(sensitive.to_bytes())
        ref = DerivedRef(of, store.publish(of, staging))
    store.name_derived(ref, SENSITIVE_VALUES)


PROBLEMS_NAME: Final = "problems.jsonl"
SIMILAR_ROWS_NAME: Final = "alike.jsonl"
MAX_BYTES: Final = 64 << 20
"""Max size of one log. A longer one is not useful, and other runs share the store."""

logger = logging.getLogger(__name__)


class LineLog:
    """Write records to a file in a run's folder, one per line, up to `MAX_BYTES`.

    Replaces the log of an earlier attempt. Without records there is no file.
    Raises StageFailure (STORE_UNAVAILABLE).
    """

    def __init__(self, folder: RunFolder, name: str) -> None:
        self.uri = f"{folder.uri}/{name}"
        self._folder = folder
        self._name = name
        self._path = folder.path / name
        self._count = 0
        self._bytes = 0
        self._temporary = folder.path / f".{name}.part"
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        self._folder.remove(self._name)
        with self._folder.mount.reachable(self._path):
            self._temporary.unlink(missing_ok=True)
            # Mode x never follows a link that another writer to the store has created.
            self._file = self._temporary.open("x", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        with self._folder.mount.reachable(self._path):
            self._file.close()
            if self._count:
                self._temporary.replace(self._path)
            else:
                self._temporary.unlink()
        if self._count:
            self._folder.keep(self._name)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record, unless the log is full."""
        if self._file is None:
            raise ValueError("the log is not open")
        self._count += 1
        if self._bytes > MAX_BYTES:
            return
        line = canonical_json.text(record) + "\n"
        self._bytes += len(line.encode())
        with self._folder.mount.reachable(self._path):
            self._file.write(line)
        if self._bytes > MAX_BYTES:
            logger.warning("%s has only the first %d records", self.uri, self._count)


class ProblemLog(LineLog):
    """Every problem, in `problems.jsonl`."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, PROBLEMS_NAME)

    def add(self, problem: RowProblem) -> None:
        """Write one problem."""
        self.write(problem_record(problem))


class SimilarRowsLog(LineLog):
    """Every pair of similar rows, in `alike.jsonl`: the removed or reported row and the other one."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder, SIMILAR_ROWS_NAME)

    def add(self, pair: DuplicatePair) -> None:
        """Write one pair."""
        self.write(duplicate_record(pair))


REPORT_NAME: Final = "report.json"
PAGE_NAME: Final = "report.html"
MAX_SHOWN_PROBLEMS: Final = 10
MAX_SHOWN_CHARACTERS: Final = 200
MAX_UNREAD_FIELDS: Final = 10
VERSION_DIGITS: Final = 32


def run(config: PrepareConfig, context: StageContext) -> PrepareResult:
    """Publish the sources as a dataset: three split files with one canonical JSON line per row.

    Kept rows keep the order of the sources. Even for rejected rows, the run's folder gets the report,
    as JSON and as a page, every problem in `problems.jsonl`, and all pairs of similar rows in `alike.jsonl`.
    If all sources still have the versions that the config names, nothing is prepared.
    Raises StageFailure (SOURCE_NOT_FOUND, INVALID_DATA, NO_TRAINING_ROWS, INVALID_CONFIG,
    STORE_UNAVAILABLE, and for a remote source what `RemoteSource` raises), Preempted.
    """
    recipes = recipes_of(config)
    opened = open_sources(config, context.stop)
    changed = [
        strip_query(source.uri)
        for source, rows in zip(config.sources, opened, strict=True)
        if rows.version is None or _version(rows) != source.known_version
    ]
    if not changed:
        logger.info("no source has changed")
        versions = tuple(SourceResult(version=_version(rows)) for rows in opened)
        return PrepareResult(sources=versions, unchanged=True)
    logger.info("reading %s", ", ".join(changed))
    with (
        context.store.run_folder(config.run, config.stage) as folder,
        ExitStack() as downloads,
        context.store.staging() as staging,
    ):
        sources = [
            SourceFiles(
                files=downloads.enter_context(rows.readable(folder)),
                recipe=recipe,
                name=strip_query(source.uri),
            )
            for source, recipe, rows in zip(config.sources, recipes, opened, strict=True)
        ]
        with ProblemLog(folder) as log, SimilarRowsLog(folder) as alike:
            prepared = _prepare(config, context, sources, folder=staging, logs=(log, alike))
        report = _Report(folder, config, prepared, log)
        result = _result(config, prepared, opened, report.page_uri)
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
        logs: tuple[ProblemLog, SimilarRowsLog],
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
    sources: Sequence[SourceFiles],
    *,
    folder: Path,
    logs: tuple[ProblemLog, SimilarRowsLog],
) -> Prepared:
    total_bytes = sum(file.size for source in sources for file in source.files)
    meter = ProgressMeter(0, "{} of about {} rows".format, context.reporter)
    try:
        prepared = prepare_sources(
            sources,
            folder,
            listener=_Listener(meter, total_bytes, logs, context.stop),
            previous=_previous(config, context),
            limit_bytes=config.max_unpacked_bytes,
        )
    except FileUnreadable as error:
        raise unreadable_failure(strip_query(config.sources[error.source].uri), error) from error
    except TooLarge as error:
        of = config.sources if error.source is None else [config.sources[error.source]]
        message = f"{', '.join(strip_query(source.uri) for source in of)}: {error}"
        raise StageFailure(FailureReason.SOURCE_TOO_LARGE, message, ExitCode.BAD_DATA) from error
    meter.end()
    return prepared


def _previous(config: PrepareConfig, context: StageContext) -> EarlierVersion | None:
    """The previous version; None if the store no longer has it."""
    if config.previous is None:
        return None
    ref = ArtifactRef(kind="datasets", digest=config.previous)
    if not context.store.has(ref):
        logger.warning("the store no longer has %s; the report has no comparison with it", config.previous)
        return None
    folder = context.store.artifact(ref)
    return EarlierVersion(
        digest=config.previous,
        files=split_paths(folder),
        sources=[
            (rows.uri, {"train": rows.train, "validation": rows.validation, "test": rows.test})
            for rows in config.previous_sources
        ],
    )


class _Report:
    """The report in the run's folder. A later attempt replaces it."""

    def __init__(self, folder: RunFolder, config: PrepareConfig, prepared: Prepared, log: ProblemLog) -> None:
        self._folder = folder
        self._source = strip_query(config.sources[0].uri) if len(config.sources) == 1 else None
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
    config: PrepareConfig, prepared: Prepared, opened: Sequence[Rows], page_uri: str
) -> PrepareResult:
    statistics, difference = prepared.statistics, prepared.difference
    prompts, completions = statistics.prompt_characters, statistics.completion_characters
    formats = [source.format for source in prepared.sources]
    return PrepareResult(
        source=digest_of(canonical_json.encode([[file.name, file.sha256] for file in prepared.files])),
        sources=tuple(map(_source_result, prepared.sources, opened)),
        preparation=preparation_digest(config, [source.recipe for source in prepared.sources], formats),
        format=", ".join(dict.fromkeys(form for form in formats if form is not None)) or None,
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
        difference=None if difference is None else _difference(difference),
        rule_version=prepared.recipe.rule_version,
        unread_fields=prepared.unread_fields[:MAX_UNREAD_FIELDS],
        group_by=prepared.recipe.division.group_by,
    )


def _version(rows: Rows) -> str | None:
    """The version of a source in a result: 128 bits of the digest."""
    return None if rows.version is None else rows.version.removeprefix("sha256:")[:VERSION_DIGITS]


def _source_result(found: SourceSummary, rows: Rows) -> SourceResult:
    return SourceResult(
        version=_version(rows),
        revision=rows.revision,
        format=found.format,
        train=found.split_rows["train"],
        validation=found.split_rows["validation"],
        test=found.split_rows["test"],
    )


def _difference(found: RowChanges) -> Difference:
    return Difference(
        previous=found.previous,
        added=found.added,
        removed=found.removed,
        changed=found.changed,
        sources=tuple(
            SourceDifference(uri=each.name, added=each.added, removed=each.removed, changed=each.changed)
            for each in found.sources
        ),
    )


def _validate(config: PrepareConfig, prepared: Prepared, result: PrepareResult, log_uri: str) -> None:
    """Raise StageFailure (INVALID_DATA, NO_TRAINING_ROWS) if the rows must not be trained on."""
    is_incomplete = any(not source.rows for source in prepared.sources)
    if prepared.invalid_rows or prepared.broken_files or prepared.forms_differ or is_incomplete:
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
    elif any(not source.rows for source in prepared.sources):
        what, fix = "the source has no rows", "Add rows"
    elif prepared.forms_differ:
        what, fix = "the sources have different forms of rows", "Correct the sources"
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
    issue = problem.issue
    text = issue.public if issue.code in DATASET_CODES else f"{problem.position}: {issue.public}"
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
