# SPDX-License-Identifier: Apache-2.0
"""Runs of several pods that hold a part of the devices that they need: they give them back.

Without a queue that admits all pods of a Job together, two such runs would wait for each other forever, so
the younger one gives back soon. A run for which the nodes never suffice would hold devices without end, so
each one gives back after an hour.
"""

from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.observe.job_problems import shows_running_pods
from finetune_operator.observe.pod_startup import lacks_capacity
from finetune_operator.observe.pod_status import condition as pod_condition
from finetune_operator.observe.pod_status import has_ended, newest_per_index, nodes_of, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages import backoff
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.nodepool import NodePool
from finetune_operator.reconcile.stages.request import StageRequest
from finetune_operator.reconcile.steps import Working
from finetune_operator.stage_table import pod_names
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage

GIVE_BACK_AFTER: Final = timedelta(minutes=5)
"""How long a run waits for its remaining pods before it gives its devices back.

An autoscaler needs a few minutes for a new node, and loses its reason to add one if pods are deleted.
"""
GIVE_BACK_TO_OTHER_TAINTS_AFTER: Final = timedelta(hours=1)
"""How long it waits if the older run tolerates other taints, so that both rarely use the same nodes.

Both may hold devices of nodes without taints, and then nothing else ends their wait.
"""
GIVE_BACK_ALONE_AFTER: Final = timedelta(hours=1)
"""How long a run waits that competes with no older one. Runs of one pod may need its devices, too."""
RECHECK_SECONDS: Final = 30.0
"""Time between two passes over a run that waits for its remaining pods: another run may join it."""


def is_partly_scheduled(job: Manifest, pods: list[Manifest]) -> bool:
    """Whether some pods of the Job hold devices while no node has room for another one."""
    if nodes_of(job) == 1 or QUEUE_LABEL in job["metadata"].get("labels", {}):
        return False
    current = [pod for pod in newest_per_index(pods) if not has_ended(pod)]
    lacking = [pod for pod in current if _lacks_room(pod)]
    return bool(lacking) and any("nodeName" in pod["spec"] for pod in current)


def give_back(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Retry | None:
    """Delete the Job of a partly scheduled run that has waited for long, or while an older one waits too.

    The wait until the Job is created again grows each time. None: the run keeps what it has.
    """
    snapshot = draft.snapshot
    since = max(filter(None, map(_unscheduled_since, pods)), default=snapshot.now)
    waited = snapshot.now - since
    if _has_waited_for_older(waited, request, snapshot):
        why = (
            "an older run of several pods waits for devices too, and each held a part of what the other one"
            " needs"
        )
    elif waited >= GIVE_BACK_ALONE_AFTER:
        placed = sum("nodeName" in pod["spec"] for pod in newest_per_index(pods) if not has_ended(pod))
        why = (
            f"no more than {placed} of {nodes_of(job)} pods had a node for an hour. If the nodes never"
            " suffice, create a run with a smaller spec.compute.nodes, or another ComputeProfile"
        )
    else:
        return None
    draft.remove(job)
    status = backoff.count_give_back(request.retry, request.stage, snapshot.now)
    message = f"the {request.stage} pods gave their devices back: {why}"
    draft.event(EventReason.DEVICES_GIVEN_BACK, message)
    halt = Working(Reason.QUEUED, message)
    return Retry(Reason.QUEUED, message, None, status, halt)


def held_back(request: StageRequest, now: datetime) -> Working | None:
    """Wait until the Job of a run that gave its devices back is created again."""
    retry = request.retry
    if retry is None or not retry.gave_back or retry.stage != request.stage:
        return None
    due = backoff.due_at(retry, request.run)
    if now >= due:
        return None
    return Working(
        Reason.QUEUED,
        f"{request.stage} gave its devices back to other runs, and requests them again at {due:%H:%M:%S} UTC",
        max(1.0, (due - now).total_seconds()),
    )


def _has_waited_for_older(waited: timedelta, request: StageRequest, snapshot: Snapshot) -> bool:
    """Whether the run has waited long enough for nodes that an older, partly scheduled run may use."""
    waiting = list(snapshot.partly_scheduled_everywhere)
    own = next((run for run in waiting if run.uid == request.run), None)
    pool = None if own is None else _pool(own, request.stage, snapshot)
    if own is None or pool is None:
        return False
    older = (run for run in waiting if _age(run) < _age(own) and _is_partly_placed(run))
    rivals = (_pool(run, request.stage, snapshot) for run in older)
    return any(
        waited >= (GIVE_BACK_TO_OTHER_TAINTS_AFTER if pool.has_other_taints_than(rival) else GIVE_BACK_AFTER)
        for rival in rivals
        if rival is not None and pool.may_share_nodes_with(rival)
    )


def _pool(run: FineTuneJob, stage: Stage, snapshot: Snapshot) -> NodePool | None:
    """The nodes of the run; None if its profile does not exist any more."""
    profile = snapshot.profiles.get(run.status.resolved.profile or "")
    return None if profile is None else NodePool.of(profile, pod_names(stage))


def _is_partly_placed(run: FineTuneJob) -> bool:
    """Whether the run holds devices, and more of them would let it continue.

    One that holds none waits for the end of other runs, or forever for a node that does not exist. One that
    only waits for its claim would not use them.
    """
    reconciling = conditions.find(run.status.conditions, ConditionType.RECONCILING)
    message = "" if reconciling is None else reconciling.message
    return shows_running_pods(message) and ("Insufficient" in message or lacks_capacity(message))


def _age(run: FineTuneJob) -> tuple[str, str]:
    created = run.metadata.creation_timestamp
    return ("" if created is None else created.isoformat(), run.uid)


def _lacks_room(pod: Manifest) -> bool:
    scheduled = pod_condition(pod, "PodScheduled") or {}
    is_refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    return is_refused and lacks_capacity(scheduled.get("message") or "")


def _unscheduled_since(pod: Manifest) -> datetime | None:
    if not _lacks_room(pod):
        return None
    at = (pod_condition(pod, "PodScheduled") or {}).get("lastTransitionTime")
    return parse_time(at or pod["metadata"]["creationTimestamp"])
