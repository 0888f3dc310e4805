# SPDX-License-Identifier: Apache-2.0
"""The queue and the priority with which Kueue admits the pods of a stage or an endpoint."""

from typing import Final, Literal

from finetune_operator.api.compute import NO_CHOICE, QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.plan import Manifest
from finetune_operator.stage_table import STAGES, JobStage, Queue

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""With this label, Kueue writes the Job's `suspend`; the operator sets that field only in a new Job."""
PRIORITY_LABEL: Final = "kueue.x-k8s.io/priority-class"

Queued = Queue | Literal["serve"]
"""Names in `kueue.queues` of a ComputeProfile."""


def make_queue_labels(names: QueueChoice) -> Manifest:
    """Labels of a Job or Deployment that Kueue reads. Without a queue it reads none."""
    if names.queue_name is None:
        return {}
    found = {QUEUE_LABEL: names.queue_name, PRIORITY_LABEL: names.workload_priority_class}
    return {label: name for label, name in found.items() if name is not None}


def suspend_until_admitted(names: QueueChoice) -> Manifest:
    """Field of the spec of a new Job. With a queue it is created suspended, as Kueue's webhook would make it.

    Where Kueue does not see the Job, because its webhook, its integration or the namespace was taken out of
    its configuration, the Job would otherwise take devices outside of every quota.
    """
    return {} if names.queue_name is None else {"suspend": True}


def choose_queue(name: Queued, profile: ComputeProfile, chosen: QueueChoice) -> QueueChoice:
    """The queue and the priority of this name, of which an object may choose other ones."""
    offered = profile.spec.kueue
    return QueueChoice(
        queue_name=chosen.queue_name or getattr(offered.queues, name, None),
        workload_priority_class=chosen.workload_priority_class
        or getattr(offered.workload_priority_classes, name, None),
    )


def choose_stage_queue(stage: JobStage, profile: ComputeProfile | None, chosen: QueueChoice) -> QueueChoice:
    """The queue and the priority of the Jobs of a stage; none for a stage that does not wait.

    A choice is for stages with devices, and for those that follow them in the same queue.
    """
    row = STAGES[stage]
    if profile is None or not row.queued:
        return NO_CHOICE
    has_devices = any(each.uses_devices and each.queue == row.queue for each in STAGES.values())
    return choose_queue(row.queue, profile, chosen if has_devices else NO_CHOICE)
