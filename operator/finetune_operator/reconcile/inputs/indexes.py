# SPDX-License-Identifier: Apache-2.0
"""Indexes of the caches: by what an object names, and in order within groups, as the versions of a Dataset.

They find the objects that another object concerns, at a cost proportional to their number. Indexers read
objects as the API server sends them, because most objects are never parsed. Finished runs are in no index,
because no change concerns them.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

from finetune_operator.api.labels import OWNER_KIND
from finetune_operator.plan import Key, Manifest
from finetune_operator.status.conditions import ends_run
from finetune_operator.status.reasons import ConditionType, Reason

G = TypeVar("G", bound=Hashable)
P = TypeVar("P", bound=tuple[Any, ...])


class SortedGroups(Generic[G, P]):
    """Keeps a sorted list of places per group. A change and a question read one list by bisection.

    Args:
        place: returns the group of an object and its place in it, which no other object has; None for an
            object that belongs to no group.
    """

    def __init__(self, place: Callable[[Manifest], tuple[G, P] | None]) -> None:
        self._place = place
        self._groups: dict[G, list[P]] = {}

    def note(self, old: Manifest | None, new: Manifest | None) -> None:
        """Take a change of an object."""
        before, after = (None if state is None else self._place(state) for state in (old, new))
        if before == after:
            return
        if before is not None:
            group, place = before
            places = self._groups[group]
            del places[bisect_left(places, place)]
            if not places:
                del self._groups[group]
        if after is not None:
            group, place = after
            insort(self._groups.setdefault(group, []), place)

    def first(self, group: G) -> P | None:
        """The first place of a group."""
        places = self._groups.get(group)
        return places[0] if places else None

    def number_after(self, group: G, place: P) -> int:
        """Number of places of the group after this one."""
        places = self._groups.get(group, [])
        return len(places) - bisect_right(places, place)


BY_DATASET: Final = "dataset"
"""FineTuneJobs and Evaluations that wait for rows, by `address` of their Dataset."""
BY_PARENT: Final = "parent"
"""FineTuneJobs that wait for the Checkpoint to continue from, by its `address`."""
BY_CHECKPOINT: Final = "checkpoint"
"""Evaluations by `address` of each Checkpoint that they name. Also finished ones, which have its scores."""
BY_LINE: Final = "line"
"""Unfinished FineTuneJobs, and endpoints that follow, by `address` of the model line.

A FineTuneJob is also at the line whose champion it waits to continue from."""
BY_PROFILE: Final = "profile"
"""Unfinished FineTuneJobs and Evaluations, and endpoints, by ComputeProfile.

By the one in the spec, or DEFAULT_PROFILE, and by the one that was the default when the first Job was made.
"""
BY_CONTENT: Final = "content"
"""FineTuneJobs, Evaluations and endpoints by the content they need: digests, and `address` of records."""
BY_DIGEST: Final = "digest"
"""Checkpoints and DatasetVersions by the digest of their content."""
BY_DATASET_OF: Final = "versions"
"""DatasetVersions by `version_owner` of the Dataset or run that made them."""
BY_STATE: Final = "state"
"""Objects by UNSETTLED, QUEUED, ROLLING, PARTLY_SCHEDULED or OVER_BUDGET."""

DEFAULT_PROFILE: Final = ""
"""Value for objects that use the default profile."""
UNSETTLED: Final = "unsettled"
QUEUED: Final = "queued"
ROLLING: Final = "rolling"
PARTLY_SCHEDULED: Final = "partly scheduled"
OVER_BUDGET: Final = "over budget"


def address(namespace: str, name: str) -> str:
    """Value for a name in a namespace."""
    return f"{namespace}/{name}"


def namespace_of(manifest: Manifest) -> str:
    """The object's namespace; empty for cluster-scoped kinds."""
    namespace: str = manifest["metadata"].get("namespace", "")
    return namespace


def key_of(manifest: Manifest) -> Key:
    """The key of an object of one of the operator's kinds."""
    return Key(manifest["kind"], namespace_of(manifest), manifest["metadata"]["name"])


def needed_contents(
    manifest: Manifest, digests: Iterable[str | None], names: Iterable[str | None]
) -> frozenset[str]:
    """The content that an object needs: digests, and `address` of records.

    An object that is being deleted needs none.
    """
    if "deletionTimestamp" in manifest["metadata"]:
        return frozenset()
    namespace = namespace_of(manifest)
    return frozenset(filter(None, digests)) | {address(namespace, name) for name in names if name}


def has_ended(job: Manifest) -> bool:
    """Whether the run or Evaluation has finished; `conditions.is_finished` for a manifest."""
    return any(ends_run(*state) for state in read_conditions(job))


def compared_champion(job: Manifest) -> dict[str, Any]:
    """The champion that a pod of the run or Evaluation measures, or will; empty if there is none."""
    measures = not read_spec(job).get("suspend") and "evaluation" not in read_status(job)
    live: dict[str, Any] = (read_status(job).get("live") or {}) if measures else {}
    return live


def waits_for_budget(job: Manifest) -> bool:
    """Whether the run or Evaluation waits for a budget."""
    return any(
        (ConditionType.RECONCILING, "True", reason) in read_conditions(job)
        for reason in (Reason.BUDGET_EXHAUSTED, Reason.BUDGET_NOT_COUNTED)
    )


Line = tuple[str, str]
"""Namespace, and a ComputeProfile or DEFAULT_PROFILE."""
PlaceInLine = tuple[str, Key]
"""Creation time and key of an object: the oldest one is the first of its line."""


def age_of(obj: Manifest) -> PlaceInLine:
    """Place in a line, whether or not the object waits."""
    return obj["metadata"].get("creationTimestamp", ""), key_of(obj)


def by_digest(record: Manifest) -> Iterator[str]:
    """The indexer of BY_DIGEST."""
    digest = read_spec(record).get("digest")
    if digest:
        yield digest


def version_owner(kind: str, namespace: str, name: str) -> str:
    """Value of BY_DATASET_OF; with the kind, because a run with dataset.source can have a Dataset's name."""
    return f"{kind}/{address(namespace, name)}"


def owner_of_version(version: Manifest) -> str:
    """The `version_owner` of a DatasetVersion."""
    kind = version["metadata"].get("labels", {}).get(OWNER_KIND, "")
    return version_owner(kind, namespace_of(version), version["spec"]["dataset"])


def place_in_history(version: Manifest) -> tuple[str, tuple[str, str]] | None:
    """The `version_owner` of a DatasetVersion, its creation time and name; None if it is being deleted."""
    metadata = version["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    return owner_of_version(version), (metadata.get("creationTimestamp", ""), metadata["name"])


def profile_of_compute(obj: Manifest) -> str:
    """The ComputeProfile that `spec.compute` of a run or endpoint names, or DEFAULT_PROFILE."""
    return (read_spec(obj).get("compute") or {}).get("profile") or DEFAULT_PROFILE


def read_spec(manifest: Manifest) -> dict[str, Any]:
    """The spec; empty if there is none."""
    spec: dict[str, Any] = manifest.get("spec") or {}
    return spec


def read_status(manifest: Manifest) -> dict[str, Any]:
    """The status; empty if there is none."""
    status: dict[str, Any] = manifest.get("status") or {}
    return status


def read_resolved(job: Manifest) -> dict[str, Any]:
    """`status.resolved` of a run or Evaluation; empty if there is none."""
    resolved: dict[str, Any] = read_status(job).get("resolved") or {}
    return resolved


def read_conditions(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """Types, statuses and reasons of the conditions."""
    for each in read_status(manifest).get("conditions") or ():
        yield each["type"], each["status"], each.get("reason", "")
