"""Why a pod of an endpoint does not serve, in words that say what to do."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from finetune_operator.plan import Manifest
from finetune_operator.status.conditions import shortened
from finetune_operator.status.podfailures import IMAGE_REASONS, MISSING_SECRET, QUOTED_TEXT
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract import ExitCode

USELESS_AGAIN: Final = frozenset({ExitCode.BAD_CONFIG.value, ExitCode.BAD_DATA.value})


@dataclass(frozen=True, slots=True)
class ServingTrouble:
    """A reason and a message; `final` where trying again cannot help."""

    reason: str
    message: str
    final: bool = False


def serving_trouble(pod: Manifest) -> ServingTrouble | None:
    """What keeps this pod from serving, or None where it serves or is still starting."""
    name = pod["metadata"]["name"]
    unscheduled = _unscheduled(pod)
    if unscheduled is not None:
        return ServingTrouble(Reason.UNSCHEDULABLE, f"no node can take pod {name} yet: {unscheduled}")
    for status in _containers(pod):
        trouble = _trouble_of(name, status)
        if trouble is not None:
            return trouble
    return None


def _unscheduled(pod: Manifest) -> str | None:
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return shortened(condition.get("message", ""), QUOTED_TEXT)
    return None


def _containers(pod: Manifest) -> Iterator[dict[str, Any]]:
    status = pod.get("status", {})
    groups: Iterable[str] = ("initContainerStatuses", "containerStatuses")
    for group in groups:
        yield from status.get(group) or ()


def _trouble_of(pod: str, status: dict[str, Any]) -> ServingTrouble | None:
    waiting = status.get("state", {}).get("waiting") or {}
    reason, said = waiting.get("reason", ""), shortened(waiting.get("message", ""), QUOTED_TEXT)
    if reason in IMAGE_REASONS:
        return ServingTrouble(
            Reason.IMAGE_UNAVAILABLE,
            f"image {status['image']} of pod {pod} cannot be pulled: check its name and registry."
            f" {reason}: {said}",
        )
    missing = MISSING_SECRET.search(said)
    if missing:
        return ServingTrouble(Reason.SECRET_NOT_FOUND, f"Secret {missing[1]} does not exist: create it")
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated") or {}
    code = ended.get("exitCode", 0)
    if ended.get("reason") == "OOMKilled":
        return ServingTrouble(
            Reason.OUT_OF_MEMORY,
            f"container {status['name']} of pod {pod} was killed for using more memory than its limit:"
            " raise resources.serve.memory of the ComputeProfile",
        )
    if code:
        words = (
            shortened(ended.get("message", "").strip(), QUOTED_TEXT)
            or f"kubectl logs {pod} -c {status['name']}"
        )
        return ServingTrouble(
            Reason.POD_NOT_STARTING,
            f"container {status['name']} of pod {pod} ended with exit code {code}: {words}",
            final=code in USELESS_AGAIN,
        )
    if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        return ServingTrouble(
            Reason.POD_NOT_STARTING,
            f"container {status['name']} of pod {pod} does not start. {reason}: {said}",
        )
    return None
