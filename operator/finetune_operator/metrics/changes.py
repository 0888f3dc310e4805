# SPDX-License-Identifier: Apache-2.0
"""Count what changed between two states of one object.

Counters increase by the difference, after the second state was written. A restarted process counts nothing
twice.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, Final, get_args

from prometheus_client import Counter

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import STAGE
from finetune_operator.api.rollout_strategy import Strategy
from finetune_operator.metrics.process_metrics import (
    OperatorMetrics,
    PodEnd,
    PromotionResult,
    RolloutResult,
    StageOutcome,
)
from finetune_operator.observe.pod_status import has_ended, parse_time
from finetune_operator.observe.pod_termination import PodOutcome, find_end_cause
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import Stage

CAUSES: Final[Mapping[PodOutcome, PodEnd]] = {
    "Succeeded": PodEnd.SUCCEEDED,
    "OutOfMemory": PodEnd.OUT_OF_MEMORY,
    "Preemption": PodEnd.PREEMPTED,
    "PeerLost": PodEnd.PREEMPTED,
    "Failure": PodEnd.FAILED,
}
"""Values of the label `cause`."""


def record_transition(metrics: OperatorMetrics, before: Manifest, after: Manifest) -> None:
    """Count the changes from the status of `before` to that of `after`, two states of the same object."""
    namespace = after["metadata"].get("namespace", "")
    old, new = before.get("status") or {}, after.get("status") or {}
    if after["kind"] == FineTuneJob.__name__:
        _finetunejob(metrics, namespace, old, new, _profiles(after))
    elif after["kind"] == Evaluation.__name__:
        _stages(metrics, namespace, old, new, _profiles(after))
    elif after["kind"] == Checkpoint.__name__:
        _checkpoint(metrics, namespace, old, new)
    elif after["kind"] == InferenceDeployment.__name__:
        strategy = after.get("spec", {}).get("strategy", {}).get("type", Strategy().type)
        _inferencedeployment(metrics, namespace, strategy, old, new)


def record_pod_end(metrics: OperatorMetrics, old: Manifest | None, new: Manifest | None) -> None:
    """Count the end of a stage's pod, if this change is it and the watch saw the pod before."""
    if old is None or new is None or has_ended(old) or not has_ended(new):
        return
    stage = new["metadata"].get("labels", {}).get(STAGE)
    # Anyone who may create pods may set their labels.
    if stage in get_args(Stage):
        metrics.pods_ended.labels(stage, CAUSES[find_end_cause(new)]).inc()


def _finetunejob(
    metrics: OperatorMetrics,
    namespace: str,
    old: dict[str, Any],
    new: dict[str, Any],
    profiles: Collection[str],
) -> None:
    _stages(metrics, namespace, old, new, profiles)
    if old == new:
        return
    metrics.checkpoints_recorded.labels(namespace).inc(
        len(_names(new.get("checkpoints", ())) - _names(old.get("checkpoints", ())))
    )
    verdict = (new.get("evaluation") or {}).get("verdict")
    if verdict != (old.get("evaluation") or {}).get("verdict") and verdict in {"Failed", "Undecided"}:
        result = PromotionResult.GATE_FAILED if verdict == "Failed" else PromotionResult.UNDECIDED
        metrics.promotions.labels(namespace, result).inc()


def _profiles(obj: Manifest) -> set[str]:
    """ComputeProfiles of the stages of an Evaluation or a run, including later ones."""
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    resolved = (status.get("resolved") or {}).get("profile")
    of_stages = [each.get("profile") for each in (*status.get("stages", ()), status.get("usage") or {})]
    # Names in the spec are checked before a profile is resolved.
    of_evaluation = (spec.get("evaluation") or {}).get("profile") if resolved else None
    return {each for each in (resolved, of_evaluation, *of_stages) if each}


def _stages(
    metrics: OperatorMetrics,
    namespace: str,
    old: dict[str, Any],
    new: dict[str, Any],
    profiles: Collection[str],
) -> None:
    """Count the stages and devices of an Evaluation or a run."""
    metrics.begin_namespace(namespace)
    for profile in profiles:
        metrics.begin_profile(namespace, profile)
    _cost(metrics, namespace, old.get("cost") or {}, new.get("cost") or {})
    if old == new:
        return
    known = {stage["name"] for stage in old.get("stages", ())}
    for stage in new.get("stages", ()):
        if stage["name"] not in known:
            row = find_row(stage["name"])
            # The condition of `evaluate` can wait for `score`. A stage that fails ends the run at once.
            has_failed = _is_true(new, ConditionType.STALLED)
            succeeded = row is not None and (_is_true(new, str(row.condition)) or not has_failed)
            is_cancelled = _condition(new, ConditionType.STALLED).get("reason") == Reason.CANCELLED
            ended = StageOutcome.CANCELLED if is_cancelled else StageOutcome.FAILED
            outcome = StageOutcome.SUCCEEDED if succeeded else ended
            metrics.stage_seconds.labels(stage["name"], outcome).observe(stage.get("seconds", 0.0))
            if "profile" in stage:
                queued = metrics.stage_queued_seconds.labels(stage["name"], stage["profile"])
                queued.observe(stage.get("queuedSeconds", 0.0))
    before = _device_seconds(metrics, old)
    for (counter, *labels), seconds in _device_seconds(metrics, new).items():
        added = seconds - before[counter, *labels]
        if added > 0:
            counter.labels(namespace, *labels).inc(added)


def _cost(metrics: OperatorMetrics, namespace: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    amount = new.get("amount", 0.0) - old.get("amount", 0.0)
    if "amount" in new and amount >= 0:
        metrics.cost.labels(namespace, new.get("currency", "")).inc(amount)


def _checkpoint(metrics: OperatorMetrics, namespace: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    metrics.begin_namespace(namespace)
    if new.get("promotedAt") and not old.get("promotedAt"):
        metrics.promotions.labels(namespace, PromotionResult.PROMOTED).inc()
    reason = _condition(new, ConditionType.PROMOTED).get("reason")
    if reason == Reason.REJECTED and _condition(old, ConditionType.PROMOTED).get("reason") != reason:
        metrics.promotions.labels(namespace, PromotionResult.REJECTED).inc()


def _inferencedeployment(
    metrics: OperatorMetrics, namespace: str, strategy: str, old: dict[str, Any], new: dict[str, Any]
) -> None:
    metrics.begin_namespace(namespace)
    analyses = {revision["name"]: revision.get("analysis") for revision in old.get("revisions", ())}
    verdicts = {revision["name"]: _verdict(revision) for revision in old.get("revisions", ())}
    for revision in new.get("revisions", ()):
        analysis = revision.get("analysis")
        if analysis and analysis != analyses.get(revision["name"]):
            metrics.rollout_analyses.labels(namespace, analysis["verdict"]).inc()
        verdict = _verdict(revision)
        if verdict is None or verdict == verdicts.get(revision["name"]):
            continue
        has_fallback = new.get("revision") not in {None, "", revision["name"]}
        result = _rollout_result(verdict, has_fallback=has_fallback)
        metrics.rollouts.labels(namespace, result).inc()
        metrics.rollout_verdicts.labels(namespace, strategy, verdict).inc()
        if revision.get("startedAt") and revision.get("since"):
            taken = parse_time(revision["since"]) - parse_time(revision["startedAt"])
            metrics.rollout_duration.labels(strategy, result).observe(taken.total_seconds())


def _verdict(revision: dict[str, Any]) -> str | None:
    verdict: str | None = (revision.get("verdict") or {}).get("result")
    return verdict


def _rollout_result(verdict: str, *, has_fallback: bool) -> RolloutResult:
    if verdict in {"Passed", "Promoted"}:
        return RolloutResult.SUCCEEDED
    return RolloutResult.ROLLED_BACK if has_fallback else RolloutResult.FAILED


def _device_seconds(
    metrics: OperatorMetrics, status: dict[str, Any]
) -> defaultdict[tuple[Counter, *tuple[str, ...]], float]:
    """Device seconds of all stages so far, by their counter and its labels without the namespace."""
    seconds: defaultdict[tuple[Counter, *tuple[str, ...]], float] = defaultdict(float)
    for times in (*status.get("stages", ()), status.get("usage") or {}):
        profile, used = times.get("profile", ""), times.get("deviceSeconds", 0.0)
        seconds[metrics.device_seconds, profile] += used
        seconds[metrics.allocated_device_seconds, profile] += used + times.get("startingDeviceSeconds", 0.0)
        seconds[metrics.queued_device_seconds, profile] += times.get("queuedDeviceSeconds", 0.0)
        for lost in times.get("lost", ()):
            seconds[metrics.lost_device_seconds, profile, lost["cause"]] += lost["deviceSeconds"]
    return seconds


def _is_true(status: dict[str, Any], type_: str) -> bool:
    return _condition(status, type_).get("status") == "True"


def _condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    found: dict[str, Any] = next((each for each in status.get("conditions", ()) if each["type"] == type_), {})
    return found


def _names(entries: Any) -> set[str]:
    return {entry["name"] for entry in entries}
