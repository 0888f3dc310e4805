# SPDX-License-Identifier: Apache-2.0
"""A Job whose pods cannot start is created again when its profile or image has changed.

Pods keep the template of their Job. Without this, a corrected ComputeProfile would not reach the objects that
wait for the correction.
"""

from typing import Final

from finetune_operator.manifests.jobs import profile_version
from finetune_operator.manifests.labels import PROFILE, PROFILE_VERSION
from finetune_operator.observe.podstatus import has_ended, trainer_container
from finetune_operator.observe.stagetimes import stage_states
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.request import Replaced, StageRequest
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.status.reasons import Reason

CANNOT_START: Final = frozenset(
    {
        Reason.IMAGE_UNAVAILABLE,
        Reason.POD_NOT_STARTING,
        Reason.QUOTA_EXCEEDED,
        Reason.SECRET_NOT_FOUND,
        Reason.UNSCHEDULABLE,
    }
)
"""Reasons of pods that wait for a node, an image, or what else their template names."""


def replace_job(
    draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest, waiting: Working | Blocked
) -> Replaced | None:
    """Delete a Job that cannot start if a new one would have other pods. None: it stays.

    A Job that Kueue holds stays: it would lose its place in the queue.
    """
    if waiting.reason not in CANNOT_START or job["spec"].get("suspend") or _has_started(job, pods):
        return None
    cause = _edited_profile(job, draft.snapshot) or _other_image(pods, request)
    if cause is None:
        return None
    draft.remove(job)
    name = job["metadata"]["name"]
    message = f"{cause} has changed: Job {name}, which did not start, is created again"
    return Replaced(Working(Reason.QUEUED, message))


def _has_started(job: Manifest, pods: list[Manifest]) -> bool:
    status = job.get("status", {})
    return bool(status.get("failed") or status.get("succeeded")) or any(
        has_ended(pod) or any("running" in state or "terminated" in state for state in stage_states(pod))
        for pod in pods
    )


def _edited_profile(job: Manifest, snapshot: Snapshot) -> str | None:
    """The Job's profile, if it was edited after the Job was made. Earlier releases did not record it."""
    metadata = job["metadata"]
    recorded = metadata.get("annotations", {}).get(PROFILE_VERSION)
    profile = snapshot.profiles.get(metadata.get("labels", {}).get(PROFILE, ""))
    if recorded is None or profile is None or recorded == profile_version(profile):
        return None
    return f"ComputeProfile {profile.name}"


def _other_image(pods: list[Manifest], request: StageRequest) -> str | None:
    """The trainer image, if a new Job would have another one than the pods."""
    if request.image is None or all(trainer_container(pod).get("image") == request.image for pod in pods):
        return None
    return "the trainer image"
