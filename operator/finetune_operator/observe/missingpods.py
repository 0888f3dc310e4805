# SPDX-License-Identifier: Apache-2.0
"""Why a Job has no pod: a quota, a limit range, Pod Security or another admission policy refuses it."""

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.manifests.labels import PROFILE
from finetune_operator.observe.peerpods import nodes_of
from finetune_operator.observe.podstarts import being_created
from finetune_operator.observe.podstatus import Trouble, quoted, stage_of
from finetune_operator.observe.stagetimes import parse_time
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
    started = started_at(job)
    if started is None:
        return _unstarted(job, stage, now - parse_time(job["metadata"]["creationTimestamp"]))
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
        being_created(stage, several=nodes > 1),
        expected=True,
        recheck_after_seconds=RECHECK_SECONDS if later is None else (later - age).total_seconds() + 1,
    )


def started_at(job: Manifest) -> datetime | None:
    """When the Job controller began to create the Job's pods; None if it has not, or the Job is suspended."""
    text = job.get("status", {}).get("startTime")
    return None if text is None else parse_time(text)


def _unstarted(job: Manifest, stage: str, age: timedelta) -> Trouble:
    """Nothing has refused a pod yet: the Job controller has many other Jobs, or does not run."""
    if age < MAX_TIME_UNSTARTED:
        return Trouble(
            Reason.QUEUED,
            being_created(stage, several=nodes_of(job) > 1),
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
    created = (parse_time(pod["metadata"]["creationTimestamp"]) for pod in pods)
    return now - at < MAX_EVENT_AGE and all(each <= at for each in created)


def _refusal(job: Manifest, stage: str, refused: str) -> Trouble:
    name = job["metadata"]["name"]
    reason, message = refused_pod(f"{stage} pod", refused, job, f"kubectl describe job {name}")
    return Trouble(reason, message, recheck_after_seconds=RECHECK_SECONDS)


def refused_pod(what: str, refused: str, owner: Manifest, command: str) -> tuple[Reason, str]:
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
    return reason, f"the API server refuses the {what}: {quoted(DETAILS.sub('', refused))} ({advice})"
