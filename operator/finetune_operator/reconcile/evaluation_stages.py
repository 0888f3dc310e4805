# SPDX-License-Identifier: Apache-2.0
"""What runs and Evaluations share when they measure a Checkpoint: the rows, and evaluate with score."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import EvaluatedRows, EvaluationSettings
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.configs import MeasuredData
from finetune_operator.reconcile.features.custom_metrics import SCORE
from finetune_operator.reconcile.features.registry import keep_sources
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.records.dataset_versions import check_location, resolve_version
from finetune_operator.reconcile.stages.accounting import finish, has_finished, reopen
from finetune_operator.reconcile.stages.stage_request import StagePass, fail_without_result
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import SplitName, Stage

EVALUATE: Final[Stage] = "evaluate"


def resolve_rows(
    rows: EvaluatedRows, field: str, user: Resource, snapshot: Snapshot
) -> DatasetVersion | Blocked | Failed | Working:
    """The DatasetVersion to measure on, whose split has rows; else how the pass ends.

    Args:
        rows: the reference of the spec.
        field: field of the spec with the reference, for messages.
        user: the run or Evaluation.
        snapshot: snapshot of the pass.
    """
    version = resolve_version(rows.ref, user, snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    if any(each.name == rows.split and each.rows for each in version.spec.splits):
        return version
    others = ", ".join(f"{each.name} ({each.rows} rows)" for each in version.spec.splits if each.rows)
    return Failed(
        Reason.INVALID_SPEC,
        f"{field}.split: the {rows.split} split of DatasetVersion {version.name} is empty: create a new"
        f" {user.kind} on another split of it ({others}), or raise split.{rows.split} of the Dataset",
    )


def check_stores(version: DatasetVersion, stores: Iterable[tuple[str, str]]) -> Blocked | Working | None:
    """Whether the rows are in each store, which is given with the start of a clause about who needs it."""
    found = (check_location(version, store, why) for store, why in stores)
    return next((elsewhere for elsewhere in found if elsewhere is not None), None)


def measured_data(
    run: StagePass[Any],
    version: str | None,
    digest: str | None,
    *,
    split: SplitName,
    training: str | None,
    shows_training: bool = False,
) -> MeasuredData:
    """The rows of a DatasetVersion."""
    return MeasuredData(
        dataset=digest or "",
        split=split,
        group_by=run.snapshot.group_column(version),
        training=training,
        shows_training=shows_training,
    )


def measure(
    run: StagePass[Any], spec: EvaluationSettings, run_stage: Callable[[Stage], StageResult | PassOutcome]
) -> EvaluateResult | PassOutcome:
    """The result of evaluate, with the custom metrics that score computes of its answers; else how one ended.

    Args:
        run: the pass.
        spec: the evaluation.
        run_stage: runs a stage, and returns its result or how it ended.
    """
    is_recorded = has_finished(run, EVALUATE)
    result = run_stage(EVALUATE)
    if not isinstance(result, StageResult):
        return result
    evaluated = result.evaluate
    if evaluated is None:
        return fail_without_result(EVALUATE)
    keep_sources(run, evaluated)
    if not spec.custom_metrics:
        return evaluated
    if not is_recorded:
        if not has_finished(run, EVALUATE):
            finish(run, EVALUATE)
        # If score has run, its result is that of an earlier evaluation.
        reopen(run, SCORE)
    scored = run_stage(SCORE)
    if not isinstance(scored, StageResult):
        return scored
    if scored.score is None:
        return fail_without_result(SCORE)
    return evaluated.model_copy(
        update={
            "scores": (*evaluated.scores, *scored.score.scores),
            "evidence": (*evaluated.evidence, *scored.score.evidence),
        }
    )
