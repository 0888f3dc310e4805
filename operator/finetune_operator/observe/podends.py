# SPDX-License-Identifier: Apache-2.0
"""How the pods of a stage ended, as far as the cause of lost time depends on it."""

from collections.abc import Iterable

from finetune_operator.api.devicetime import MAX_ENDED_PODS, EndedPod, PodEndCause
from finetune_operator.observe.podfailures import disruption
from finetune_operator.observe.stagetimes import container_state, parse_time
from finetune_operator.plan import Manifest
from finetune_trainer.contract.outcomes import ExitCode


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


def _end_of(pod: Manifest) -> EndedPod | None:
    ended = container_state(pod).get("terminated", {})
    if not ended.get("finishedAt") or ended.get("exitCode") == ExitCode.OK:
        return None
    return EndedPod(pod=pod["metadata"]["uid"], at=parse_time(ended["finishedAt"]), cause=_cause(pod))


def _cause(pod: Manifest) -> PodEndCause:
    ended = container_state(pod)["terminated"]
    if disruption(pod) is not None or ended.get("exitCode") == ExitCode.PREEMPTED_SAVED:
        return "Preemption"
    if ended.get("exitCode") == ExitCode.PEER_LOST:
        return "PeerLost"
    if ended.get("reason") != "OOMKilled" and "deletionTimestamp" in pod["metadata"]:
        return "Preemption"
    return "Failure"
