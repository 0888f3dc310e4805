"""The secondary resources: types of objects, besides our kinds, that passes read, one entry for each.

From this table follow the caches and what they keep, the watches, what is requested by name, the relations,
`Snapshot.children` and `Snapshot.looked_up`. A test holds the rights that the chart grants against it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Final

from finetune_operator.engine.metadata import controller, controller_uid
from finetune_operator.engine.resources import (
    CLAIM,
    DEPLOYMENT,
    JOB,
    NAMESPACE,
    NETWORK_POLICY,
    POD,
    POD_DISRUPTION_BUDGET,
    SERVICE,
    ResourceType,
)
from finetune_operator.engine.store import Indexer, Transform
from finetune_operator.manifests.labels import RUN, SELECTOR
from finetune_operator.plan import Manifest

Children = Mapping[ResourceType, Mapping[str, Manifest]]
"""The children of one object by type and name."""
LookedUp = Mapping[ResourceType, Mapping[str, Manifest | None]]
"""Objects that were requested, by type and name; None where one does not exist."""
Needs = Mapping[ResourceType, frozenset[str]]
"""Names of objects of an object's namespace that its pass wants to see, by type."""

NOTHING: Final[Needs] = MappingProxyType({})

UNREAD_IN_JOBS: Final = frozenset({"podFailurePolicy", "template"})
UNREAD_IN_PODS: Final = frozenset({"securityContext", "tolerations", "volumes"})
UNREAD_IN_CONTAINERS: Final = frozenset({"args", "command", "env", "securityContext", "volumeMounts"})


def by_controller(obj: Manifest) -> tuple[str, ...]:
    """The uid of the object's controller."""
    uid = controller_uid(obj)
    return (uid,) if uid else ()


def by_run(obj: Manifest) -> tuple[str, ...]:
    """The uid of the object of ours that the labels name, which anybody may have written."""
    run = obj["metadata"].get("labels", {}).get(RUN)
    return (run,) if run else ()


@dataclass(frozen=True, slots=True)
class Child:
    """A type that is watched, because objects of ours have objects of it.

    Attributes:
        type: as the API server names it.
        selector: label selector of the watch.
        owners: uids that an object is filed under. It is a child of the object of ours with such a uid, or
            with such a child: what a Job controls belongs to the run that controls the Job.
        belongs: whether an object that was found so really is a child, given the children of the types
            before this one.
        kept: an object less what no pass reads.
    """

    type: ResourceType
    selector: str = SELECTOR
    owners: Indexer = by_controller
    belongs: Callable[[Manifest, Children], bool] = lambda *_: True
    kept: Transform = lambda obj: obj

    verbs: ClassVar = ("get", "list", "watch")
    """Rights to read it."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A type that is requested by name when a pass needs it: the objects are the users' and not watched.

    Attributes:
        type: as the API server names it.
        fresh_seconds: for which an answer is used again, so that a thousand runs do not ask a thousand times.
        is_lacking: whether the answer may keep an object waiting. It is then requested again from time to
            time, until another object has the name.
    """

    type: ResourceType
    fresh_seconds: float = 10.0
    is_lacking: Callable[[Manifest | None], bool] = lambda found: found is None

    verbs: ClassVar = ("get",)
    """Rights to read it."""


Secondary = Child | Lookup


def _slim_job(job: Manifest) -> Manifest:
    """Without the pod's template, most of a Job: it is written once and never read."""
    return job | {
        "spec": {name: value for name, value in job.get("spec", {}).items() if name not in UNREAD_IN_JOBS}
    }


def _slim_pod(pod: Manifest) -> Manifest:
    """Without what the Job's template says already, most of a pod."""
    spec = {name: value for name, value in pod.get("spec", {}).items() if name not in UNREAD_IN_PODS}
    for containers in ("containers", "initContainers"):
        if containers in spec:
            spec[containers] = [
                {name: value for name, value in container.items() if name not in UNREAD_IN_CONTAINERS}
                for container in spec[containers]
            ]
    return pod | {"spec": spec}


def _is_pod_of(pod: Manifest, children: Children) -> bool:
    """Whether one of the Jobs or Deployments controls the pod; anybody may put our labels on another pod."""
    owner = controller(pod)
    if owner.get("kind") == "ReplicaSet":
        # ReplicaSets are not watched; they carry their Deployment's name and a hash.
        return str(owner["name"]).rpartition("-")[0] in children[DEPLOYMENT]
    return owner.get("uid") in {job["metadata"]["uid"] for job in children[JOB].values()}


def _is_on_one_node(claim: Manifest | None) -> bool:
    """Whether the claim is missing, or pods on other nodes cannot mount it; its modes never change."""
    return claim is None or "ReadWriteMany" not in (claim.get("spec", {}).get("accessModes") or ())


SECONDARIES: Final[tuple[Secondary, ...]] = (
    Child(JOB, kept=_slim_job),
    Child(DEPLOYMENT),
    Child(POD, owners=by_run, belongs=_is_pod_of, kept=_slim_pod),
    Child(SERVICE),
    Child(NETWORK_POLICY),
    Child(POD_DISRUPTION_BUDGET),
    Lookup(CLAIM, is_lacking=_is_on_one_node),
    # Whether one is terminating is requested each time, and is never waited for.
    Lookup(NAMESPACE, fresh_seconds=0.0, is_lacking=lambda _: False),
)


def no_children() -> Children:
    """Of an object that has none."""
    return {each.type: {} for each in children_of(SECONDARIES)}


def children_of(secondaries: tuple[Secondary, ...]) -> tuple[Child, ...]:
    """The entries that are watched."""
    return tuple(each for each in secondaries if isinstance(each, Child))


def lookups_of(secondaries: tuple[Secondary, ...]) -> tuple[Lookup, ...]:
    """The entries that are requested by name."""
    return tuple(each for each in secondaries if isinstance(each, Lookup))
