# SPDX-License-Identifier: Apache-2.0
"""A Job whose pods cannot start is created again if a new one would have other pods.

Pods keep the template of their Job. Without this, a corrected ComputeProfile would not reach the objects that
wait for the correction.
"""

from typing import Any, Final

from finetune_operator.manifests.pod_shape import changed_origin
from finetune_operator.observe.pod_status import has_started
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.request import CannotStart
from finetune_operator.reconcile.stages.stagepass import StagePass
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import Stage

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


def cannot_start(job: Manifest, pods: list[Manifest], waiting: Working | Blocked) -> bool:
    """Whether no pod of the Job has started, and something that its template names prevents it.

    False for a Job that Kueue holds: another one would be the last in the queue.
    """
    status = job.get("status", {})
    has_ended_pods = bool(status.get("failed") or status.get("succeeded"))
    return (
        waiting.reason in CANNOT_START
        and not job["spec"].get("suspend")
        and not has_ended_pods
        and not any(map(has_started, pods))
    )


def create_again(
    draft: Draft, stuck: CannotStart, new: Manifest | Blocked | Failed | Working
) -> Working | None:
    """Delete the Job, so that another pass creates it. None: it stays.

    Args:
        new: the Job that the caller would create now, or why it cannot be created now.
    """
    if isinstance(new, Blocked | Failed | Working):
        return None
    images_count = stuck.waiting.reason == Reason.IMAGE_UNAVAILABLE
    cause = changed_origin(stuck.job, new, images_count=images_count)
    if cause is None:
        return None
    draft.remove(stuck.job)
    name = stuck.job["metadata"]["name"]
    message = f"Job {name}, which did not start, is created again: {cause} has changed"
    return Working(Reason.QUEUED, message)


def has_run(run: StagePass[Any], stage: Stage) -> bool:
    """Whether a pod of the stage has run, by what the status recorded of it.

    A pod that was evicted is gone from the API, and a Job does not count it.
    """
    status = run.status
    usage, progress = status.usage, status.progress
    return (
        status.retry is not None
        or (usage is not None and usage.name == stage)
        or (progress is not None and progress.stage == stage and progress.total_steps > 0)
        or any(each.name == stage for each in status.stages)
    )
