"""What happened between two statuses of one object, for the counters."""

from collections import defaultdict
from typing import Any, Final

from finetune_operator.metrics import Metrics
from finetune_operator.plan import Manifest

STAGE_CONDITIONS: Final = {
    "prepare": "DatasetReady",
    "preflight": "Preflighted",
    "train": "Trained",
    "evaluate": "Evaluated",
}


def count(metrics: Metrics, before: Manifest, after: Manifest) -> None:
    """Count what the status of `after` tells beyond that of `before`; both are of the same object."""
    old, new = before.get("status") or {}, after.get("status") or {}
    if old == new:
        return
    match after["kind"]:
        case "FineTuneJob":
            _finetunejob(metrics, after["metadata"]["namespace"], old, new)
        case "Checkpoint":
            _checkpoint(metrics, old, new)
        case "InferenceDeployment":
            _inferencedeployment(metrics, old, new)


def _finetunejob(metrics: Metrics, namespace: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    known = {stage["name"] for stage in old.get("stages", ())}
    for stage in new.get("stages", ()):
        if stage["name"] not in known:
            succeeded = _condition(new, STAGE_CONDITIONS[stage["name"]]).get("status") == "True"
            outcome = "succeeded" if succeeded else "failed"
            metrics.stage_seconds.labels(stage["name"], outcome).observe(stage.get("seconds", 0.0))
    before = _device_seconds(old)
    for profile, seconds in _device_seconds(new).items():
        used = seconds - before[profile]
        if used > 0:
            metrics.device_seconds.labels(namespace, profile).inc(used)
    verdict = (new.get("evaluation") or {}).get("verdict")
    if verdict != (old.get("evaluation") or {}).get("verdict") and verdict in {"Failed", "Undecided"}:
        metrics.promotions.labels("gate_failed" if verdict == "Failed" else "undecided").inc()


def _checkpoint(metrics: Metrics, old: dict[str, Any], new: dict[str, Any]) -> None:
    if new.get("promotedAt") and not old.get("promotedAt"):
        metrics.promotions.labels("promoted").inc()
    reason = _condition(new, "Promoted").get("reason")
    if reason == "Rejected" and _condition(old, "Promoted").get("reason") != reason:
        metrics.promotions.labels("rejected").inc()


def _inferencedeployment(metrics: Metrics, old: dict[str, Any], new: dict[str, Any]) -> None:
    known = {revision["name"]: revision["state"] for revision in old.get("revisions", ())}
    for revision in new.get("revisions", ()):
        state = revision["state"]
        if state != known.get(revision["name"]) and state in {"Live", "Failed"}:
            metrics.rollouts.labels("succeeded" if state == "Live" else "failed").inc()


def _device_seconds(status: dict[str, Any]) -> defaultdict[str, float]:
    """By profile: those of the stages that have finished, and those of the one that has not."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for used in (*status.get("stages", ()), status.get("usage") or {}):
        seconds[used.get("profile", "")] += used.get("deviceSeconds", 0.0)
    return seconds


def _condition(status: dict[str, Any], type_: str) -> dict[str, Any]:
    found: dict[str, Any] = next((each for each in status.get("conditions", ()) if each["type"] == type_), {})
    return found
