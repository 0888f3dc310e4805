# SPDX-License-Identifier: Apache-2.0
"""The problem that stops a Job, from all its current pods, or why it has no pod.

A quota, a limit range, Pod Security or another admission policy can refuse a pod.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.labels import PROFILE
from finetune_operator.observe import pod_startup, pod_termination
from finetune_operator.observe.admission import Admission, admission_trouble, changed_parallelism
from finetune_operator.observe.pod_startup import describe_creation
from finetune_operator.observe.pod_status import (
    Trouble,
    container_state,
    creation_time,
    describe_pod,
    has_ended,
    newest_per_index,
    nodes_of,
    parse_time,
    quote,
    stage_of,
    stage_states,
)
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

MAX_TIME_UNSTARTED: Final = timedelta(minutes=5)
"""Age at which a Job that the Job controller has not taken is reported. A busy controller takes a while."""
ASK_AFTER: Final = timedelta(seconds=10)
"""Time since the start of a Job after which the operator reads the events about its missing pod."""
ASK_AGAIN_AFTER: Final = timedelta(seconds=40)
"""Time after which it reads them again. Jobs share a list for 30 s: the first may be older than the Job."""
MAX_TIME_WITHOUT_POD: Final = timedelta(seconds=60)
"""Time after which a Job without a pod is reported, even if no event shows why."""
MAX_MINUTES_BETWEEN_ATTEMPTS: Final = 10
"""After this time at most, the Job controller tries again to create a pod."""
MAX_EVENT_AGE: Final = timedelta(minutes=MAX_MINUTES_BETWEEN_ATTEMPTS + 1)
"""Age up to which an event shows the last attempt."""
RECHECK_SECONDS: Final = 60.0
"""Time between two checks of a Job whose pod was refused, or failed and has no successor yet."""

DETAILS: Final = re.compile(
    r'^(\(combined from similar events\): )?Error creating: |pods "[^"]*" is forbidden: '
)
"""Parts of an event that say nothing, or differ in each attempt."""
EXCEEDED: Final = re.compile(r"exceeded quota")
ADVICE: Final = (
    (
        EXCEEDED,
        (
            f"it starts at most {MAX_MINUTES_BETWEEN_ATTEMPTS} minutes after the quota has room; raise it, or"
            " lower resources of {profile}"
        ),
    ),
    (
        re.compile(r"failed quota: .*must specify limits\.cpu"),
        "set pods[].cpuLimitRequestRatio of {profile}",
    ),
    (re.compile(r"failed quota: .*must specify"), "set it in pods[].resources of {profile}"),
    (
        re.compile(r"limit to request ratio|(maximum|minimum) \S+ usage per"),
        "change pods[].resources or pods[].cpuLimitRequestRatio of {profile}, or the LimitRange",
    ),
    (re.compile(r"PriorityClass"), "create it, or correct pods[].priorityClassName of {profile}"),
    (
        re.compile(r"violates PodSecurity"),
        "check pods of {profile}, and webhooks that change pods",
    ),
)
"""Patterns of refusals, and the advice for each."""


def missing_pod(job: Manifest, pods: Iterable[Manifest], refused: Manifest | None, now: datetime) -> Trouble:
    """The problem of a pod of the Job that does not exist.

    Args:
        job: the Job.
        pods: its pods.
        refused: event about its last pod that was refused; None if there is none.
        now: time of the pass.
    """
    stage, name, nodes = stage_of(job), job["metadata"]["name"], nodes_of(job)
    started = find_start(job)
    if started is None:
        return _unstarted(job, stage, now - creation_time(job))
    age = now - started
    if refused is not None and _is_recent(refused, pods, now):
        return _refusal(job, stage, refused.get("message") or "")
    if age >= MAX_TIME_WITHOUT_POD and not job.get("status", {}).get("failed"):
        lacks = "has no pod" if nodes == 1 else "lacks a pod"
        return Trouble(
            Reason.POD_NOT_STARTING,
            f"Job {name} {lacks}: a quota, a limit range, Pod Security or another admission policy may"
            f" reject it; kubectl describe job {name} shows why",
        )
    later = next((each for each in (ASK_AFTER, ASK_AGAIN_AFTER, MAX_TIME_WITHOUT_POD) if each > age), None)
    return Trouble(
        Reason.QUEUED,
        describe_creation(stage, several=nodes > 1),
        expected=True,
        recheck_after_seconds=RECHECK_SECONDS if later is None else (later - age).total_seconds() + 1,
    )


def find_start(job: Manifest) -> datetime | None:
    """When the Job controller began to create the Job's pods; None if it has not, or the Job is suspended."""
    text = job.get("status", {}).get("startTime")
    return None if text is None else parse_time(text)


def _unstarted(job: Manifest, stage: str, age: timedelta) -> Trouble:
    """Nothing has refused a pod yet: the Job controller has many other Jobs, or does not run."""
    if age < MAX_TIME_UNSTARTED:
        return Trouble(
            Reason.QUEUED,
            describe_creation(stage, several=nodes_of(job) > 1),
            expected=True,
            recheck_after_seconds=(MAX_TIME_UNSTARTED - age).total_seconds() + 1,
        )
    return Trouble(
        Reason.POD_NOT_STARTING,
        f"Kubernetes has not begun to create pods of Job {job['metadata']['name']} for"
        f" {MAX_TIME_UNSTARTED.seconds // 60} minutes: check that kube-controller-manager runs",
    )


def _is_recent(event: Manifest, pods: Iterable[Manifest], now: datetime) -> bool:
    """Whether the Job still waits for its next attempt. Events are kept longer than that."""
    text = event.get("lastTimestamp")
    if text is None:
        return True
    at = parse_time(text)
    created = (creation_time(pod) for pod in pods)
    return now - at < MAX_EVENT_AGE and all(each <= at for each in created)


def _refusal(job: Manifest, stage: str, refused: str) -> Trouble:
    name = job["metadata"]["name"]
    reason, message = describe_refusal(f"{stage} pod", refused, job, f"kubectl describe job {name}")
    return Trouble(reason, message, recheck_after_seconds=RECHECK_SECONDS)


def describe_refusal(what: str, refused: str, owner: Manifest, command: str) -> tuple[Reason, str]:
    """Reason and message about a pod that the API server refuses.

    Args:
        what: the pod, for the message.
        refused: message of the controller that should create it.
        owner: the Job or Deployment.
        command: shows more.
    """
    labels = owner["metadata"].get("labels", {})
    profile = f"ComputeProfile {labels[PROFILE]}" if PROFILE in labels else "the ComputeProfile"
    found = (advice.format(profile=profile) for pattern, advice in ADVICE if pattern.search(refused))
    advice = next(found, f"{command} shows each attempt")
    reason = Reason.QUOTA_EXCEEDED if EXCEEDED.search(refused) else Reason.POD_NOT_STARTING
    return reason, f"the API server refuses the {what}: {quote(DETAILS.sub('', refused))} ({advice})"


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
    trouble = pod_termination.node_trouble(pod, describe_pod(stage_of(job), pod), now)
    if trouble is not None:
        return trouble
    if has_ended(pod) or any("running" in each for each in stage_states(pod)):
        return None
    if "terminated" in state:
        return pod_termination.sidecar_trouble(pod, now)
    return pod_startup.start_trouble(job, pod, now)


def recheck_after_seconds(pods: list[Manifest], now: datetime) -> float | None:
    """Seconds until `job_trouble` may find a new problem even if nothing changes."""
    until = (
        pod_termination.seconds_until_overdue(pod, now) or pod_termination.until_sidecar_trouble(pod, now)
        for pod in newest_per_index(pods)
    )
    return min((seconds for seconds in until if seconds is not None), default=None)
