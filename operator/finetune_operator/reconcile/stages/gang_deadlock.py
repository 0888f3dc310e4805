# SPDX-License-Identifier: Apache-2.0
"""Release of devices by runs of several pods that hold only a part of the devices that they need.

Without a queue that admits all pods of a Job together, two such runs would wait for each other forever, so
the younger one gives back soon if both can get devices of the same nodes. A run for which the nodes never
suffice would hold devices without end, so each one gives back after an hour.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Final, NamedTuple, Self

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.pod_template import Affinity, PodStage, Toleration
from finetune_operator.manifests.queueing import QUEUE_LABEL
from finetune_operator.observe.job_problems import shows_running_pods
from finetune_operator.observe.pod_startup import lacks_capacity
from finetune_operator.observe.pod_status import condition as pod_condition
from finetune_operator.observe.pod_status import has_ended, newest_per_index, nodes_of, parse_time
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import PlanBuilder, Working
from finetune_operator.reconcile.stages import retries
from finetune_operator.reconcile.stages.retries import Retry
from finetune_operator.reconcile.stages.stage_request import StageRequest
from finetune_operator.stage_table import pod_names
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage

CONDITION_TAINTS: Final = "node.kubernetes.io/"
"""Begin of the keys of taints that Kubernetes sets by the state of a node."""


class _LabelCondition(NamedTuple):
    """Condition on one label of a node, as in v1.NodeSelectorRequirement."""

    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodePool:
    """The nodes whose devices the pods of a stage can get.

    Attributes:
        resource: extended resource of the devices.
        terms: alternatives, each of which is a conjunction of conditions on labels.
        tolerations: tolerations of taints, except those that show the state of a node.
    """

    resource: str
    terms: tuple[tuple[_LabelCondition, ...], ...]
    tolerations: tuple[Toleration, ...]

    @classmethod
    def of(cls, profile: ComputeProfile, names: Collection[PodStage]) -> Self:
        """The nodes of pods with these names in the entries of the profile."""
        pods = profile.spec.pods_of(names)
        selected = tuple(_LabelCondition(key, "In", (value,)) for key, value in pods.node_selector.items())
        return cls(
            profile.spec.accelerator.resource,
            tuple((*selected, *term) for term in _required_terms(pods.affinity)),
            tuple(each for each in pods.tolerations if not (each.key or "").startswith(CONDITION_TAINTS)),
        )

    def may_share_nodes_with(self, other: "NodePool") -> bool:
        """Whether the devices are of the same kind, and no label keeps all nodes apart."""
        return self.resource == other.resource and any(
            _is_satisfiable((*own, *others)) for own, others in product(self.terms, other.terms)
        )

    def has_other_taints_than(self, other: "NodePool") -> bool:
        """Whether each tolerates a taint that the other does not, as pools with taints of their own do.

        This does not prove that they share no node: both can use nodes without taints.
        """
        return _tolerates_more(self.tolerations, other.tolerations) and _tolerates_more(
            other.tolerations, self.tolerations
        )


def _required_terms(affinity: Affinity | None) -> list[tuple[_LabelCondition, ...]]:
    """The required node affinity as alternatives; without one, a single alternative without conditions."""
    nodes = affinity.node_affinity if affinity is not None else None
    required = nodes.required_during_scheduling_ignored_during_execution if nodes is not None else None
    if required is None:
        return [()]
    return [
        tuple(_LabelCondition(each.key, each.operator, each.values) for each in term.match_expressions)
        for term in required.node_selector_terms
    ]


def _is_satisfiable(conditions: Iterable[_LabelCondition]) -> bool:
    """Whether a node can meet all of these conditions."""
    by_label: dict[str, list[_LabelCondition]] = defaultdict(list)
    for condition in conditions:
        by_label[condition.key].append(condition)
    return all(map(_is_possible, by_label.values()))


def _is_possible(conditions: list[_LabelCondition]) -> bool:
    """Whether one label can meet all of these conditions."""
    listed = [set(each.values) for each in conditions if each.operator == "In"]
    operators = {each.operator for each in conditions}
    if "DoesNotExist" in operators:
        return operators <= {"DoesNotExist", "NotIn"}
    if listed:
        return any(all(_meets(value, each) for each in conditions) for value in set.intersection(*listed))
    above = max((int(each.values[0]) for each in conditions if each.operator == "Gt"), default=None)
    below = min((int(each.values[0]) for each in conditions if each.operator == "Lt"), default=None)
    return above is None or below is None or above + 1 < below


def _meets(value: str, condition: _LabelCondition) -> bool:
    if condition.operator in {"Gt", "Lt"}:
        try:
            number, bound = int(value), int(condition.values[0])
        except ValueError:
            return False
        return number > bound if condition.operator == "Gt" else number < bound
    return (value in condition.values) != (condition.operator == "NotIn") or condition.operator == "Exists"


def _tolerates_more(tolerations: Iterable[Toleration], others: tuple[Toleration, ...]) -> bool:
    """Whether one of the tolerations is for a taint that none of the others is for."""
    return not all(any(_covers(other, each) for other in others) for each in tolerations)


def _covers(other: Toleration, toleration: Toleration) -> bool:
    """Whether `other` tolerates each taint that `toleration` does."""
    return (
        other.key in {None, toleration.key}
        and (
            other.operator == "Exists"
            or (other.operator, other.value) == (toleration.operator, toleration.value)
        )
        and other.effect in {None, toleration.effect}
    )


RELEASE_AFTER: Final = timedelta(minutes=5)
"""How long a run waits for its remaining pods before it gives its devices back.

An autoscaler needs a few minutes for a new node, and loses its reason to add one if pods are deleted.
"""
RELEASE_TO_OTHER_TAINTS_AFTER: Final = timedelta(hours=1)
"""How long it waits if the older run tolerates other taints, so that both rarely use the same nodes.

Both may hold devices of nodes without taints, and then nothing else ends their wait.
"""
RELEASE_ALONE_AFTER: Final = timedelta(hours=1)
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


def release_devices(
    draft: PlanBuilder, job: Manifest, pods: list[Manifest], request: StageRequest
) -> Retry | None:
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
    elif waited >= RELEASE_ALONE_AFTER:
        placed = sum("nodeName" in pod["spec"] for pod in newest_per_index(pods) if not has_ended(pod))
        why = (
            f"no more than {placed} of {nodes_of(job)} pods had a node for an hour. If the nodes never"
            " suffice, create a run with a smaller spec.compute.nodes, or another ComputeProfile"
        )
    else:
        return None
    draft.remove(job)
    status = retries.count_release(request.retry, request.stage, snapshot.now)
    message = f"the {request.stage} pods gave their devices back: {why}"
    draft.event(EventReason.DEVICES_GIVEN_BACK, message)
    halt = Working(Reason.QUEUED, message)
    return Retry(Reason.QUEUED, message, None, status, halt)


def wait_after_release(request: StageRequest, now: datetime) -> Working | None:
    """Wait until the Job of a run that gave its devices back is created again."""
    retry = request.retry
    if retry is None or not retry.gave_back or retry.stage != request.stage:
        return None
    due = retries.due_at(retry, request.run)
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
        waited >= (RELEASE_TO_OTHER_TAINTS_AFTER if pool.has_other_taints_than(rival) else RELEASE_AFTER)
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
    reconciling = conditions.find_condition(run.status.conditions, ConditionType.RECONCILING)
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
