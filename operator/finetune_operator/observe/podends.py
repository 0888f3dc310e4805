# SPDX-License-Identifier: Apache-2.0
"""How the pods of a stage ended: one cause for metrics and for lost time."""

from collections.abc import Iterable
from typing import Literal

from finetune_operator.api.stage_status import MAX_ENDED_PODS, EndedPod, PodEndCause
from finetune_operator.observe.podfailures import disruption
from finetune_operator.observe.stagetimes import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import ExitCode

PodOutcome = Literal["Succeeded", "OutOfMemory"] | PodEndCause


def with_ended(known: tuple[EndedPod, ...], pods: Iterable[Manifest]) -> tuple[EndedPod, ...]:
    """The known ends, and those of the pods that ran and did not succeed, in the order of their ends.

    If there are too many, ends that other ends caused are left out first, then the oldest. The result with
    the same pods again is the same.
    """
    ends = {each.pod: each for each in known}
    for pod in pods:
        end = _end_of(pod)
        if end is not None:
            ends.setdefault(end.pod, end)
    kept = sorted(ends.values(), key=lambda each: (each.cause != "PeerLost", each.at, each.pod))
    return tuple(sorted(kept[-MAX_ENDED_PODS:], key=lambda each: (each.at, each.pod)))


def cause_of_end(pod: Manifest) -> PodOutcome:
    """How a pod ended. A pod that is deleted before its trainer succeeds is preempted."""
    ended = container_state(pod).get("terminated", {})
    code = ended.get("exitCode")
    if code == ExitCode.OK:
        return "Succeeded"
    if disruption(pod) is not None or code == ExitCode.PREEMPTED_SAVED:
        return "Preemption"
    if code == ExitCode.PEER_LOST:
        return "PeerLost"
    if ended.get("reason") == "OOMKilled":
        return "OutOfMemory"
    return "Preemption" if "deletionTimestamp" in pod["metadata"] else "Failure"


def _end_of(pod: Manifest) -> EndedPod | None:
    finished_at = container_state(pod).get("terminated", {}).get("finishedAt")
    outcome = cause_of_end(pod)
    if not finished_at or outcome == "Succeeded":
        return None
    cause: PodEndCause = "Failure" if outcome == "OutOfMemory" else outcome
    return EndedPod(pod=pod["metadata"]["uid"], at=parse_time(finished_at), cause=cause)
