# SPDX-License-Identifier: Apache-2.0
"""The problem that stops a Job, from all its current pods."""

import re
from dataclasses import replace
from datetime import datetime
from typing import Final

from finetune_operator.observe import lostnodes, podfailures, podstarts
from finetune_operator.observe.admission import Admission, admission_trouble, changed_parallelism
from finetune_operator.observe.missingpods import missing_pod
from finetune_operator.observe.peerpods import describe_pod, newest_per_index, nodes_of
from finetune_operator.observe.podstatus import Trouble, has_ended, stage_of
from finetune_operator.observe.stagetimes import container_state, stage_states
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

SHARE: Final = re.compile(r"(\d+) of \d+ pods (is|are) running; ")
"""Begin of the message about a Job with several pods."""


def job_trouble(job: Manifest, pods: list[Manifest], admission: Admission, now: datetime) -> Trouble | None:
    """The problem that stops an unfinished Job; None if its newest pod runs or has just ended.

    For a Job with several pods it is the problem of one pod. Problems that need user action have priority.

    Args:
        job: the Job.
        pods: its pods, newest first.
        admission: what keeps it without pods.
        now: time of the pass.
    """
    changed = changed_parallelism(job)
    if changed is not None:
        return changed
    current, nodes = newest_per_index(pods), nodes_of(job)
    found = [(pod, _pod_trouble(job, pod, now)) for pod in current]
    troubles = [trouble for _, trouble in found if trouble is not None]
    if lacks_a_pod(job, current):
        is_suspended = job.get("spec", {}).get("suspend")
        troubles.append(
            admission_trouble(job, admission, now)
            if is_suspended
            else missing_pod(job, pods, admission.refused, now)
        )
    if not troubles:
        return None
    first = min(troubles, key=lambda trouble: (trouble.expected, trouble.reason == Reason.QUEUED))
    later = min(
        (each.recheck_after_seconds for each in troubles if each.recheck_after_seconds is not None),
        default=None,
    )
    if nodes > 1 and first.reason != Reason.QUEUED:
        running = sum(trouble is None and "running" in container_state(pod) for pod, trouble in found)
        share = f"{running} of {nodes} pods {'is' if running == 1 else 'are'} running"
        first = replace(first, message=f"{share}; {first.message}")
    return replace(first, recheck_after_seconds=later)


def shows_running_pods(message: str) -> bool:
    """Whether pods of the Job run, by the message of its problem. Those of a Job with one pod do not."""
    found = SHARE.match(message)
    return found is not None and found[1] != "0"


def lacks_a_pod(job: Manifest, pods: list[Manifest]) -> bool:
    """Whether a pod has not been created yet; pods that succeeded may have been deleted."""
    done = sum(1 for pod in pods if pod.get("status", {}).get("phase") == "Succeeded")
    counted: int = job.get("status", {}).get("succeeded", 0)
    return len(pods) - done + max(done, counted) < nodes_of(job)


def _pod_trouble(job: Manifest, pod: Manifest, now: datetime) -> Trouble | None:
    state = container_state(pod)
    trouble = lostnodes.node_trouble(pod, describe_pod(stage_of(job), pod), now)
    if trouble is not None:
        return trouble
    if has_ended(pod) or any("running" in each for each in stage_states(pod)):
        return None
    if "terminated" in state:
        return podfailures.sidecar_trouble(pod, now)
    return podstarts.start_trouble(job, pod, now)


def recheck_after_seconds(pods: list[Manifest], now: datetime) -> float | None:
    """Seconds until `job_trouble` may find a new problem even if nothing changes."""
    until = (
        lostnodes.until_overdue(pod, now) or podfailures.until_sidecar_trouble(pod, now)
        for pod in newest_per_index(pods)
    )
    return min((seconds for seconds in until if seconds is not None), default=None)
