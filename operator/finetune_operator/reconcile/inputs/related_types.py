# SPDX-License-Identifier: Apache-2.0
"""Secondary resources: the types of objects, in addition to our kinds, that passes read.

The caches and their content, the watches, requests by name, the relations, `Snapshot.children` and
`Snapshot.looked_up` follow from this table. A test compares the chart's RBAC rules with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import ClassVar, Final

from finetune_operator.api.labels import ANALYZED, OPERATOR, RUN, SELECTOR
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import (
    CLAIM,
    DEPLOYMENT,
    EVENT,
    HTTP_ROUTE,
    JOB,
    LOCAL_QUEUE,
    NAMESPACE,
    NETWORK_POLICY,
    PENDING_WORKLOADS,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    WORKLOAD,
    ResourceType,
    controller,
    controller_uid,
)
from finetune_operator.engine.store import Indexer, Transform
from finetune_operator.observe.admission import slim_summary
from finetune_operator.observe.route_status import route_health
from finetune_operator.plan import Manifest

Children = Mapping[ResourceType, Mapping[str, Manifest]]
"""The children of one object by type and name."""
LookedUp = Mapping[ResourceType, Mapping[str, Manifest | None]]
"""Objects that were requested, by type and name; None if an object does not exist.

Of an optional type that the operator cannot read, a `Status` of the API server with the reason.
"""
Needs = Mapping[ResourceType, frozenset[str]]
"""Names of the objects that a pass reads, by type; if they have a namespace, it is that of its object."""

JOB_UID: Final = "kueue.x-k8s.io/job-uid"
"""Label of a Workload with the uid of its Job."""
SHARED_SECONDS: Final = 30.0
"""Time for which all objects of a namespace that wait share one list."""
ROUTES_SECONDS: Final = 15.0
"""The same for HTTPRoutes, so that a change by others is found within 45 s."""
EVENTS_PER_PAGE: Final = 500
"""Events are small, and the API server reads those of a namespace from etcd for each list."""

NOTHING: Final[Needs] = MappingProxyType({})

UNREAD_IN_JOBS: Final = frozenset({"podFailurePolicy", "template"})
UNREAD_IN_PODS: Final = frozenset(
    {"affinity", "securityContext", "tolerations", "topologySpreadConstraints", "volumes"}
)
MAX_EVENT_CHARACTERS: Final = 1024
"""Length to which the message of an event is cut, as clients do. Anyone in the namespace can write events."""
UNREAD_IN_CONTAINERS: Final = frozenset({"args", "command", "env", "securityContext", "volumeMounts"})


def by_controller(obj: Manifest) -> tuple[str, ...]:
    """The uid of the object's controller."""
    uid = controller_uid(obj)
    return (uid,) if uid else ()


def by_run(obj: Manifest) -> tuple[str, ...]:
    """The uid of the owner that the labels name. Anyone can set these labels."""
    labels = obj["metadata"].get("labels", {})
    run = labels.get(RUN) or labels.get(ANALYZED)
    return (run,) if run else ()


@dataclass(frozen=True, slots=True)
class Child:
    """A type of children. The operator watches it.

    Attributes:
        type: the type in the API.
        selector: label selector of the watch.
        owners: returns the uids of an object's owners. The object is a child of our object with such a uid,
            or of our object that has a child with such a uid: a Job's pods belong to the run that controls
            the Job.
        belongs: whether an object found by uid is a child, given the children of the types before this one.
        kept: removes the fields of an object that no pass reads.
    """

    type: ResourceType
    selector: str = SELECTOR
    owners: Indexer = by_controller
    belongs: Callable[[Manifest, Children], bool] = lambda *_: True
    kept: Transform = lambda obj: obj

    verbs: ClassVar = ("get", "list", "watch")
    """RBAC verbs for reading the type."""

    @property
    def resource(self) -> str:
        """Name of the resource in RBAC rules."""
        return self.type.plural


@dataclass(frozen=True, slots=True)
class SharedList:
    """One list of a namespace, in place of one request per object.

    Attributes:
        name_of: returns the name by which passes find an object in the list; empty: no pass needs it. Of
            several objects with a name, the list has the last one.
        selector: label selector of the list.
        fields: field selector of the list.
        page_size: objects per page. None: that of all lists.
        answers: whether the list is enough for an object, or, with None, for one that it does not have. If
            not, the operator requests the object by its name. None: the list is always enough.
    """

    name_of: Callable[[Manifest], str]
    selector: str = ""
    fields: str = ""
    page_size: int | None = None
    answers: Callable[[Manifest | None], bool] | None = None


@dataclass(frozen=True, slots=True)
class Lookup:
    """A type of objects that the operator does not watch. It requests them when a pass needs them.

    Attributes:
        type: the type in the API.
        shared: the list that has the objects of a namespace. None: each is requested by its name.
        fresh_seconds: time for which a response is reused, so that many runs share one request. Each object
            that `shared` does not answer for is requested anew.
        is_lacking: whether the response can block an object. The operator then repeats the request
            periodically until the response changes.
        is_optional: whether a cluster may lack the type, or the operator the right to read it.
        any_version: whether a cluster with only another version of the API counts as having the type, because
            the operator uses the objects of others and makes none.
        subresource: the part of the object that is requested; empty: the object.
        is_best_effort: whether a failed request counts as a missing object, because passes only show the
            response.
        kept: removes the fields of the response that no pass reads.
    """

    type: ResourceType
    shared: SharedList | None = None
    fresh_seconds: float = 10.0
    is_lacking: Callable[[Manifest | None], bool] = lambda found: found is None
    is_optional: bool = False
    any_version: bool = False
    subresource: str = ""
    is_best_effort: bool = False
    kept: Transform = lambda obj: obj

    @property
    def resource(self) -> str:
        """Name of the resource in RBAC rules."""
        return f"{self.type.plural}/{self.subresource}" if self.subresource else self.type.plural

    @property
    def verbs(self) -> tuple[str, ...]:
        """RBAC verbs for reading the type."""
        if self.shared is None:
            return ("get",)
        return ("list",) if self.shared.answers is None else ("get", "list")


RelatedType = Child | Lookup


def _slim_job(job: Manifest) -> Manifest:
    """The Job without its pod template, which is most of it and is never read."""
    return job | {
        "spec": {name: value for name, value in job.get("spec", {}).items() if name not in UNREAD_IN_JOBS}
    }


def _slim_pod(pod: Manifest) -> Manifest:
    """The pod without fields that repeat the template, which are most of it."""
    spec = {name: value for name, value in pod.get("spec", {}).items() if name not in UNREAD_IN_PODS}
    for containers in ("containers", "initContainers"):
        if containers in spec:
            spec[containers] = [
                {name: value for name, value in container.items() if name not in UNREAD_IN_CONTAINERS}
                for container in spec[containers]
            ]
    return pod | {"spec": spec}


def _without_marks(obj: Manifest) -> Manifest:
    """The object without labels and annotations, which passes do not read and users may fill with 256 KiB."""
    unread = {"labels", "annotations", "managedFields"}
    return obj | {"metadata": {name: value for name, value in obj["metadata"].items() if name not in unread}}


def _is_pod_of(pod: Manifest, children: Children) -> bool:
    """Whether a child Job or Deployment controls the pod, because anyone can put our labels on a pod."""
    owner = controller(pod)
    if owner.get("kind") == "ReplicaSet":
        # The operator does not watch ReplicaSets. Their name is that of the Deployment and a hash.
        return str(owner["name"]).rpartition("-")[0] in children[DEPLOYMENT]
    return owner.get("uid") in {job["metadata"]["uid"] for job in children[JOB].values()}


def _subject(event: Manifest) -> str:
    """The uid of the object that the event is about."""
    uid: str = event.get("involvedObject", {}).get("uid", "")
    return uid


def _slim_event(event: Manifest) -> Manifest:
    message = (event.get("message") or "")[:MAX_EVENT_CHARACTERS]
    return {"kind": event["kind"], "message": message, "lastTimestamp": event.get("lastTimestamp")}


def _job_of(workload: Manifest) -> str:
    uid: str = workload["metadata"].get("labels", {}).get(JOB_UID, "")
    return uid


def _slim_workload(workload: Manifest) -> Manifest:
    """The Workload without its pod templates, which are most of it."""
    status = workload.get("status", {})
    return {
        "kind": workload["kind"],
        "metadata": {"name": workload["metadata"]["name"]},
        "status": {name: status[name] for name in ("conditions", "admissionChecks") if name in status},
    }


def _name(obj: Manifest) -> str:
    name: str = obj["metadata"]["name"]
    return name


def _slim_route(route: Manifest) -> Manifest:
    """The route with the managed fields of the operator only."""
    entries = route["metadata"].get("managedFields") or ()
    own = [entry for entry in entries if entry["manager"] == OPERATOR]
    return route | {"metadata": route["metadata"] | {"managedFields": own}}


def _is_routed(route: Manifest | None) -> bool:
    """Whether all gateways have accepted the route. Until then each pass reads it anew."""
    return route is not None and not is_refusal(route) and route_health(route).status == "True"


def _is_absent(queue: Manifest | None) -> bool:
    """Whether the LocalQueue or its type does not exist."""
    return queue is None or queue.get("code") == HTTPStatus.NOT_FOUND


def _is_on_one_node(claim: Manifest | None) -> bool:
    """Whether the claim is missing or only mountable on one node; access modes never change."""
    return claim is None or "ReadWriteMany" not in (claim.get("spec", {}).get("accessModes") or ())


RELATED_TYPES: Final[tuple[RelatedType, ...]] = (
    Child(JOB, kept=_slim_job),
    Child(DEPLOYMENT),
    Child(POD, owners=by_run, belongs=_is_pod_of, kept=_slim_pod),
    Child(SERVICE),
    Child(NETWORK_POLICY),
    Child(POD_DISRUPTION_BUDGET),
    # Only events show why a Job has no pod. Their names end with the time of their creation. The API server
    # has no index for them: a list per Job would read all events of the namespace for each.
    Lookup(
        EVENT,
        SharedList(_subject, fields="involvedObject.kind=Job,reason=FailedCreate", page_size=EVENTS_PER_PAGE),
        fresh_seconds=SHARED_SECONDS,
        is_lacking=lambda _: False,
        is_best_effort=True,
        kept=_slim_event,
    ),
    Lookup(CLAIM, is_lacking=_is_on_one_node, kept=_without_marks),
    # For its labels, which many runs read, and when an object is deleted. Nothing waits for a namespace.
    Lookup(NAMESPACE, fresh_seconds=15.0, is_lacking=lambda _: False, is_optional=True),
    # Not watched: a watch of a type that is not installed fails. A pass requests its next check itself.
    Lookup(
        HTTP_ROUTE,
        SharedList(_name, SELECTOR, answers=_is_routed),
        fresh_seconds=ROUTES_SECONDS,
        is_lacking=lambda _: False,
        is_optional=True,
        kept=_slim_route,
    ),
    Lookup(LOCAL_QUEUE, is_lacking=_is_absent, is_optional=True, any_version=True, kept=_without_marks),
    # Not watched: most Workloads of a cluster belong to others. A Job's `suspend` shows its admission.
    Lookup(
        WORKLOAD,
        SharedList(_job_of, JOB_UID),
        fresh_seconds=SHARED_SECONDS,
        is_lacking=lambda _: False,
        is_optional=True,
        any_version=True,
        kept=_slim_workload,
    ),
    Lookup(
        PENDING_WORKLOADS,
        fresh_seconds=SHARED_SECONDS,
        is_lacking=lambda _: False,
        subresource="pendingworkloads",
        is_best_effort=True,
        kept=slim_summary,
    ),
)


def no_children() -> Children:
    """The children of an object that has none."""
    return {each.type: {} for each in children_of(RELATED_TYPES)}


def children_of(secondaries: tuple[RelatedType, ...]) -> tuple[Child, ...]:
    """The types that the operator watches."""
    return tuple(each for each in secondaries if isinstance(each, Child))


def lookups_of(secondaries: tuple[RelatedType, ...]) -> tuple[Lookup, ...]:
    """The types that the operator requests by name."""
    return tuple(each for each in secondaries if isinstance(each, Lookup))
