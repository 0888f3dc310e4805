# SPDX-License-Identifier: Apache-2.0
"""What runs and Evaluations share when they measure a Checkpoint: the champion to compare with, the rows, the
inputs of the stages evaluate and score, and their common result.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

from finetune_operator.api.checkpoint import AdapterRecord, Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import ComparedChampion, EvaluatedRows, EvaluationSettings
from finetune_operator.api.evaluation_metrics import CustomMetricSource, EvaluationTaskSource
from finetune_operator.api.meta import Resource
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.configs import MeasuredData, select_subjects
from finetune_operator.manifests.labels import RUN, STAGE
from finetune_operator.manifests.own_metrics import folder_volumes, source_volumes, task_volumes
from finetune_operator.manifests.peers import peer_name
from finetune_operator.manifests.pod_protection import build_isolation
from finetune_operator.manifests.volumes import NO_VOLUMES, Volumes, parse_store
from finetune_operator.manifests.weights import live_model as live_model_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.records.references import check_location, resolve_version
from finetune_operator.reconcile.stages.accounting import finish, has_finished, reopen
from finetune_operator.reconcile.stages.jobs import running_orphans
from finetune_operator.reconcile.stages.stage_request import StagePass, fail_without_result
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.results import EvaluateResult, PreflightResult, StageResult
from finetune_trainer.contract.vocabulary import SplitName, Stage

EVALUATE: Final[Stage] = "evaluate"
SCORE: Final[Stage] = "score"


def compares_live(spec: EvaluationSettings) -> bool:
    """Whether the evaluation measures the champion of the model line."""
    return "Live" in select_subjects(spec)


def find_champion(snapshot: Snapshot, line: str) -> ComparedChampion:
    """The champion of a model line at present."""
    champion = snapshot.checkpoints.champion(line)
    if champion is None:
        return ComparedChampion()
    return ComparedChampion(checkpoint=champion.name, digest=champion.spec.digest)


def find_rival(snapshot: Snapshot, line: str, evaluated: str) -> ComparedChampion:
    """The champion, unless it is the evaluated Checkpoint, which is not compared with itself."""
    now = find_champion(snapshot, line)
    return ComparedChampion() if now.checkpoint == evaluated else now


def has_begun(run: StagePass[Any], stage: Stage) -> bool:
    """Whether the stage has a Job or a running pod, so that its champion is not replaced any more."""
    name = run.job_names(stage).stage
    return name in run.snapshot.children[JOB] or bool(running_orphans(run.snapshot, name))


def live_adapter(run: StagePass[Any]) -> AdapterRecord | None:
    """Properties of the recorded champion's adapter; None if it has none."""
    champion = _recorded_champion(run)
    return None if champion is None else champion.spec.lineage.adapter


def live_model(run: StagePass[Any]) -> LiveModel | None:
    """The recorded champion as the trainer needs it; None if there is none."""
    champion = _recorded_champion(run)
    return None if champion is None else live_model_of(champion)


def _recorded_champion(run: StagePass[Any]) -> Checkpoint | None:
    known = run.status.live
    return run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None


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


def keep_sources(run: StagePass[Any], found: PreflightResult | EvaluateResult) -> None:
    """Record the sources of the user's metrics by the first result that has them. Later Jobs use the same."""
    metrics = tuple(CustomMetricSource(**each.model_dump()) for each in found.custom_metrics)
    tasks = tuple(EvaluationTaskSource(**each.model_dump()) for each in found.tasks)
    run.resolve(custom_metrics=metrics or None, tasks=tasks or None)


def measured_data(
    run: StagePass[Any],
    version: str | None,
    digest: str | None,
    *,
    split: SplitName,
    training: str | None,
    shows_training: bool = False,
) -> MeasuredData:
    """The rows of a DatasetVersion, and the recorded sources."""
    resolved = run.status.resolved
    return MeasuredData(
        dataset=digest or "",
        split=split,
        group_by=run.snapshot.group_column(version),
        training=training,
        shows_training=shows_training,
        tasks={source.name: source.digest for source in resolved.tasks or ()},
        custom_metrics={source.name: source.digest for source in resolved.custom_metrics or ()},
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


def evaluation_volumes(stage: JobStage, spec: EvaluationSettings | None) -> Volumes:
    """Volumes with the user's metrics and tasks that the pod of a stage mounts for an evaluation."""
    if spec is None:
        return NO_VOLUMES
    mounts = STAGES[stage].mounts
    sources = source_volumes(spec.custom_metrics) if "custom_metrics" in mounts else NO_VOLUMES
    return sources + (task_volumes(spec.tasks) if "tasks" in mounts else NO_VOLUMES)


def scored_folders(stage: JobStage, store: str, folder: str, dataset: str | None) -> Volumes | None:
    """What a pod without the store mounts; None for other stages. A bucket has none, and is refused.

    Args:
        stage: the stage of the pod.
        store: URI of the store.
        folder: folder of the results under `runs/`.
        dataset: digest of the measured rows.
    """
    claim = parse_store(store) if STAGES[stage].isolated else None
    return None if claim is None or dataset is None else folder_volumes(claim, folder, dataset)


def build_stage_isolation(owner: Resource, stage: JobStage) -> Manifest | None:
    """The NetworkPolicy of a stage that runs code of a user; None for other stages."""
    if not STAGES[stage].isolated:
        return None
    return build_isolation(owner, peer_name(owner, stage), {RUN: owner.uid, STAGE: stage})


def check_custom_metrics(
    spec: EvaluationSettings | None, field: str, store: str, profile: ComputeProfile
) -> Failed | Blocked | None:
    """Why the evaluation may not use metrics of its own; None if it may, or has none.

    Args:
        spec: the evaluation.
        field: field of the spec with the metrics.
        store: URI of the store with the answers.
        profile: ComputeProfile of the pods that evaluate.
    """
    if spec is None or not spec.custom_metrics:
        return None
    if parse_store(store) is None:
        return Failed(
            Reason.INVALID_SPEC,
            f"{field} needs a store on a claim: its pod has no network to read {store}. Remove customMetrics,"
            " or use a pvc:// store",
        )
    if profile.spec.allow.custom_code:
        return None
    return Blocked(
        Reason.CUSTOM_CODE_NOT_ALLOWED,
        f"ComputeProfile {profile.name} does not allow {field}: ask the platform team to set its"
        " allow.customCode to true, or leave customMetrics out of a new object",
        requeue_after=None,
    )
