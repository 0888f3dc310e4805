"""The stage itself: read, validate, divide, leave duplicates out, publish."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_trainer import canonical
from finetune_trainer.context import StageContext
from finetune_trainer.contract import (
    ArtifactRef,
    Digest,
    ExitCode,
    FailureReason,
    PrepareConfig,
    PrepareResult,
    SplitRecord,
)
from finetune_trainer.failure import Preempted, StageFailure
from finetune_trainer.manifest import digest_of
from finetune_trainer.prepare.duplicates import Duplicates
from finetune_trainer.prepare.fetching import readable_source
from finetune_trainer.prepare.output import SplitWriter
from finetune_trainer.prepare.pace import Pace
from finetune_trainer.prepare.problems import Invalid, Issue, Place, ProblemLog
from finetune_trainer.prepare.reading import Reading
from finetune_trainer.prepare.records import FieldNames
from finetune_trainer.prepare.source import source_digest
from finetune_trainer.prepare.split import split_of
from finetune_trainer.prepare.statistics import Statistics
from finetune_trainer.rows import SPLIT_FILES, SplitName

logger = logging.getLogger(__name__)


def run(config: PrepareConfig, context: StageContext) -> PrepareResult:
    """Make the source a published dataset: the three split files, each row one canonical JSON line.

    The kept rows stay in the source's order. Every problem goes to `problems.jsonl` in the run's folder.
    Raises StageFailure (SOURCE_NOT_FOUND, INVALID_DATA, NO_TRAINING_ROWS, INVALID_CONFIG,
    STORE_UNAVAILABLE, and of a remote source what `RemoteSource` raises), Preempted.
    """
    names = _names(config)
    counts = _Counts()
    with (
        context.store.run_folder(config.run, config.stage) as folder,
        readable_source(config, folder, context.stop) as source,
        ProblemLog(folder) as problems,
        context.store.staging() as staging,
    ):
        reading = Reading(source.files, names, config.format)
        with SplitWriter(staging) as writer:
            pace = Pace(source.files, context.reporter)
            for item in reading:
                if context.stop.is_set():
                    raise Preempted
                if isinstance(item, Invalid):
                    counts.refuse(item)
                    problems.add(item)
                elif counts.duplicates.is_new(item.row):
                    # The division is by the raw row: whatever cleans rows comes after this line.
                    writer.write(split_of(item.row, item.group, config.split), item.row)
                    counts.statistics.add(item.row)
                pace.row()
            counts.rows = pace.rows - counts.broken_files
            if counts.rows == 0 and problems.count == 0:
                problems.add(Invalid(Place(), (Issue("no rows", "at least one row", "add rows"),)))
            pace.done()
        result = PrepareResult(
            source=source_digest(source.files),
            source_revision=source.revision,
            preparation=_preparation_digest(config, reading.format, names),
            format=reading.format,
            statistics=counts.statistics.record(
                source_rows=counts.rows,
                invalid_rows=counts.invalid,
                duplicate_rows=counts.duplicates.exact,
            ),
            problem_count=problems.count,
            problems=tuple(problems.shown),
        )
        _judge(config, counts, result, problems.uri)
        _require_training_rows(config, counts, writer.rows, result)
        digest = context.store.publish("datasets", staging)
    _say(counts, writer.rows)
    return result.model_copy(
        update={"dataset": digest, "splits": _split_records(context, digest, writer.rows)}
    )


@dataclass
class _Counts:
    """Of one source: rows, those refused, and files of which the rest could not be read."""

    rows: int = 0
    invalid: int = 0
    broken_files: int = 0
    duplicates: Duplicates = field(default_factory=Duplicates)
    statistics: Statistics = field(default_factory=Statistics)

    def refuse(self, invalid: Invalid) -> None:
        if invalid.ends_file:
            self.broken_files += 1
        else:
            self.invalid += 1


def _names(config: PrepareConfig) -> FieldNames:
    names = FieldNames.of(config.columns, config.split.group_by)
    if names.prompt == names.completion:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"columns.prompt and columns.completion are both {names.prompt!r}; name two columns",
        )
    return names


def _judge(config: PrepareConfig, counts: _Counts, result: PrepareResult, log_uri: str) -> None:
    """Raise StageFailure (INVALID_DATA) where the refused rows are more than what may be dropped."""
    if not result.problem_count:
        return
    share = counts.invalid / counts.rows if counts.rows else 1.0
    if counts.broken_files:
        what, fix = "the source cannot be read to its end", "correct it"
    elif not counts.rows:
        what, fix = "the source has no rows", "add some"
    elif config.on_invalid_rows == "Fail":
        what = f"{counts.invalid} of {counts.rows} rows are invalid"
        fix = "correct the rows, or set onInvalidRows: Drop"
    elif config.max_invalid_fraction is not None and share > config.max_invalid_fraction:
        what = (
            f"{counts.invalid} of {counts.rows} rows ({share:.1%}) are invalid, more than maxInvalidFraction"
            f" {config.max_invalid_fraction:g}"
        )
        fix = "correct the rows, or raise maxInvalidFraction"
    else:
        return
    first = "; ".join(result.problems[:3])
    raise StageFailure(
        FailureReason.INVALID_DATA,
        f"{what}: {first}. All {result.problem_count} problems: {log_uri}. To go on, {fix}.",
        ExitCode.BAD_DATA,
        prepare=result,
    )


def _require_training_rows(
    config: PrepareConfig, counts: _Counts, rows: Mapping[SplitName, int], result: PrepareResult
) -> None:
    if rows["train"]:
        return
    raise StageFailure(
        FailureReason.NO_TRAINING_ROWS,
        f"no row is left to train on: of {counts.rows} rows {counts.invalid} are invalid,"
        f" {counts.duplicates.exact} duplicates, {rows['validation']} fell to validation"
        f" ({config.split.validation:g}) and {rows['test']} to test ({config.split.test:g}). Add rows, lower"
        " split.validation and split.test, or take another split.seed.",
        ExitCode.BAD_DATA,
        prepare=result,
    )


def _preparation_digest(config: PrepareConfig, found: str | None, names: FieldNames) -> Digest:
    """What was done to the source, whether it was asked for or came by itself."""
    columns = (
        {"messages": names.messages}
        if found == "ChatMessages"
        else {"prompt": names.prompt, "completion": names.completion}
    )
    return digest_of(
        canonical.encode(
            {
                "version": 1,
                "format": found,
                "columns": columns,
                "split": config.split.model_dump(mode="json"),
                "onInvalidRows": config.on_invalid_rows,
                "maxInvalidFraction": config.max_invalid_fraction,
            }
        )
    )


def _split_records(
    context: StageContext, digest: Digest, rows: Mapping[SplitName, int]
) -> tuple[SplitRecord, ...]:
    manifest = context.store.manifest(ArtifactRef(kind="datasets", digest=digest))
    hashes = {file.path: file.sha256 for file in manifest.files}
    return tuple(
        SplitRecord(name=name, rows=rows[name], digest=f"sha256:{hashes[file]}")
        for name, file in SPLIT_FILES.items()
    )


def _say(counts: _Counts, rows: Mapping[SplitName, int]) -> None:
    divided = ", ".join(f"{name} {count}" for name, count in rows.items())
    logger.info("%d rows: %s; %d duplicates left out", counts.rows, divided, counts.duplicates.exact)
    if counts.invalid:
        logger.warning("%d invalid rows were dropped", counts.invalid)
    if counts.duplicates.conflicting:
        logger.warning(
            "%d rows have the input of an earlier row and another output; the model cannot learn both",
            counts.duplicates.conflicting,
        )
