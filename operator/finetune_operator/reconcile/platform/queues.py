# SPDX-License-Identifier: Apache-2.0
"""The Kueue queues of an object: what a pass looks up, and what the user has to do if one is missing."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Final

from finetune_operator.api.compute import QueueChoice
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import JOB, LOCAL_QUEUE, PENDING_WORKLOADS, POD, WORKLOAD
from finetune_operator.manifests.queueing import QUEUE_LABEL, choose_queue, choose_stage_queue
from finetune_operator.observe.admission import waiting_since
from finetune_operator.observe.deployments import is_gated
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.related_types import Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.reasons import Reason

Queues = Mapping[str, str]
"""Names of LocalQueues by the field that names them, for messages."""

MIN_WAIT: Final = timedelta(seconds=4)
"""Time after which the reason and the position are requested. Most Jobs are admitted before."""


def queues_of(
    profile: ComputeProfile | Blocked | None, stages: Iterable[JobStage], chosen: QueueChoice
) -> Queues:
    """The queues of the stages, of which the object may choose another one."""
    if profile is None or isinstance(profile, Blocked):
        return {}
    found = {STAGES[each].queue: choose_stage_queue(each, profile, chosen).queue_name for each in stages}
    return {_field(name, queue, profile, chosen): queue for name, queue in found.items() if queue}


def serving_queue(profile: ComputeProfile, chosen: QueueChoice) -> Queues:
    """The queue of an endpoint's pods."""
    queue = choose_queue("serve", profile, chosen).queue_name
    return {_field("serve", queue, profile, chosen): queue} if queue else {}


def _field(name: str, queue: str, profile: ComputeProfile, chosen: QueueChoice) -> str:
    if queue == chosen.queue_name:
        return "spec.compute.queueName"
    return f"kueue.queues.{name} of ComputeProfile {profile.name}"


def check_choice(profile: ComputeProfile, chosen: QueueChoice) -> Blocked | None:
    """Whether the profile allows the queue and the priority that the object chooses."""
    kueue = profile.spec.kueue
    offered = (
        (
            (Reason.QUEUE_NOT_ALLOWED, "queueName", chosen.queue_name),
            ("kueue.allowedQueues", kueue.allowed_queues, kueue.queues),
        ),
        (
            (Reason.PRIORITY_NOT_ALLOWED, "workloadPriorityClass", chosen.workload_priority_class),
            (
                "kueue.allowedWorkloadPriorityClasses",
                kueue.allowed_workload_priority_classes,
                kueue.workload_priority_classes,
            ),
        ),
    )
    for (reason, field, name), (allows, allowed, defaults) in offered:
        names = sorted({*allowed, *(defaults.to_dict().values() if defaults is not None else ())})
        if name is not None and name not in names:
            return Blocked(
                reason,
                f"spec.compute.{field} is {name}, but ComputeProfile {profile.name} allows"
                f" {', '.join(names) or 'none'}: name one of these, or ask the platform team to add it to the"
                f" profile's {allows}",
            )
    return None


def queue_needs(queues: Queues) -> Needs:
    """The LocalQueues as needs of a pass."""
    return {LOCAL_QUEUE: frozenset(queues.values())}


def admission_needs(snapshot: Snapshot) -> Needs:
    """The Workloads of the object's suspended Jobs, by the Job's uid, and the queues of all that waits."""

    def waits(obj: Manifest) -> bool:
        return snapshot.now - waiting_since(obj) >= MIN_WAIT

    jobs = (job for job in snapshot.children[JOB].values() if job.get("spec", {}).get("suspend"))
    suspended = list(filter(waits, jobs))
    gated = filter(waits, filter(is_gated, snapshot.children[POD].values()))
    queues = {each["metadata"].get("labels", {}).get(QUEUE_LABEL, "") for each in (*suspended, *gated)}
    names = {
        WORKLOAD: frozenset(job["metadata"]["uid"] for job in suspended),
        PENDING_WORKLOADS: frozenset(queues - {""}),
    }
    return {type_: needed for type_, needed in names.items() if needed}


def merge_needs(*needs: Needs) -> Needs:
    """All needs of a pass."""
    types = {type_ for each in needs for type_ in each}
    return {type_: frozenset(name for each in needs for name in each.get(type_, ())) for type_ in types}


def check_queues(queues: Queues, namespace: str, snapshot: Snapshot) -> Blocked | None:
    """Whether Kueue is installed and these LocalQueues exist, as far as the operator may read them."""
    problems = (_problem(field, name, namespace, snapshot) for field, name in queues.items())
    return next((each for each in problems if each is not None), None)


def _problem(field: str, name: str, namespace: str, snapshot: Snapshot) -> Blocked | None:
    queue = snapshot.find(LOCAL_QUEUE, name)
    if queue is not None and is_refusal(queue):
        if queue["code"] != HTTPStatus.NOT_FOUND:
            return None
        return Blocked(
            Reason.KUEUE_NOT_INSTALLED,
            f"{field} is LocalQueue {name} of Kueue, but {queue['message']}: install Kueue, or ask the"
            " platform team to remove kueue.queues from the ComputeProfile",
        )
    if not snapshot.is_missing(LOCAL_QUEUE, name):
        return None
    return Blocked(
        Reason.QUEUE_NOT_FOUND,
        f"LocalQueue {name} of {field} does not exist in namespace {namespace}: create it, or ask the"
        " platform team to",
    )
