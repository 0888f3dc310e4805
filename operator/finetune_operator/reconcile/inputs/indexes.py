# SPDX-License-Identifier: Apache-2.0
"""Indexes of the caches: by what an object names, and in order within groups.

Order within groups of objects, such as the versions of a Dataset, kept up to date with each change.

Indexes that find the objects which another object concerns, at a cost proportional to their number.

Indexers read objects as the API server sends them, because most objects are never parsed. Finished runs are
in no index, because no change concerns them.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, TypeVar

from finetune_operator.engine.store import Indexer
from finetune_operator.manifests.labels import OWNER_KIND
from finetune_operator.plan import Key, Manifest
from finetune_operator.status.conditions import ends_dataset, ends_run
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


def contents(manifest: Manifest) -> frozenset[str]:
    """The content that an endpoint, unfinished run or Evaluation needs: digests, `address` of records."""
    if "deletionTimestamp" in manifest["metadata"]:
        return frozenset()
    needs = {"FineTuneJob": _needs_of_run, "Evaluation": _needs_of_evaluation}.get(manifest["kind"], _needs)
    digests, names = needs(manifest)
    namespace = namespace_of(manifest)
    return frozenset(filter(None, digests)) | {address(namespace, name) for name in names if name}


def has_ended(job: Manifest) -> bool:
    """Whether the run or Evaluation has finished; `finished.is_finished` for a manifest."""
    return any(ends_run(*state) for state in _conditions(job))


def is_rolling(endpoint: Manifest) -> bool:
    """Whether a revision of the endpoint is starting, as the first or next to another one.

    A paused rollout is not.
    """
    if _spec(endpoint).get("strategy", {}).get("paused"):
        return False
    return any(revision.get("state") == "RollingOut" for revision in _status(endpoint).get("revisions", ()))


def _needs_of_run(job: Manifest) -> tuple[list[Any], list[Any]]:
    if has_ended(job):
        return [], []
    spec, status, resolved = _spec(job), _status(job), _resolved(job)
    made, live = status.get("checkpoints", ()), _compared(job)
    ref, evaluated = _references(spec)
    return (
        [
            resolved.get("datasetDigest"),
            resolved.get("evaluationDatasetDigest"),
            resolved.get("parentDigest"),
            live.get("digest"),
            *(each.get("digest") for each in made),
        ],
        [
            live.get("checkpoint"),
            resolved.get("datasetVersion"),
            resolved.get("evaluationDatasetVersion"),
            resolved.get("parentCheckpoint"),
            ref.get("version"),
            evaluated.get("version"),
            spec.get("baseModel", {}).get("checkpoint"),
            *(each.get("name") for each in made),
        ],
    )


def _needs_of_evaluation(evaluation: Manifest) -> tuple[list[Any], list[Any]]:
    if has_ended(evaluation):
        return [], []
    spec, resolved, live = _spec(evaluation), _resolved(evaluation), _compared(evaluation)
    return (
        [resolved.get("datasetDigest"), live.get("digest"), *resolved.get("checkpointDigests", ())],
        [
            resolved.get("datasetVersion"),
            spec["dataset"]["ref"].get("version"),
            live.get("checkpoint"),
            *spec["checkpoints"],
        ],
    )


def _compared(job: Manifest) -> dict[str, Any]:
    """The champion that a pod of the run or Evaluation measures, or will; empty if there is none."""
    measures = not _spec(job).get("suspend") and "evaluation" not in _status(job)
    live: dict[str, Any] = (_status(job).get("live") or {}) if measures else {}
    return live


def _needs(endpoint: Manifest) -> tuple[list[Any], list[Any]]:
    served = _status(endpoint).get("models", ())
    pins = [model.get("pin") or {} for model in _spec(endpoint).get("models", ())]
    return (
        [each.get("digest") for each in (*served, *pins)],
        [each.get("checkpoint") for each in (*served, *pins)],
    )


def _run_by_dataset(job: Manifest) -> Iterator[str]:
    if has_ended(job):
        return
    fields = ("datasetVersion", "evaluationDatasetVersion")
    for ref, field in zip(_references(_spec(job)), fields, strict=True):
        if ref.get("name") and not _resolved(job).get(field):
            yield address(namespace_of(job), ref["name"])


def _references(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Datasets that a run trains on and is evaluated on; empty where it names none."""
    evaluated = (spec.get("evaluation") or {}).get("dataset") or {}
    return spec.get("dataset", {}).get("ref") or {}, evaluated.get("ref") or {}


def _run_by_parent(job: Manifest) -> Iterator[str]:
    name = _spec(job).get("baseModel", {}).get("checkpoint") if not has_ended(job) else None
    if name and not _resolved(job).get("parentDigest"):
        yield address(namespace_of(job), name)


def _run_by_line(job: Manifest) -> Iterable[str]:
    if has_ended(job):
        return ()
    waits = not _resolved(job).get("baseModelUri")
    champion = (_spec(job).get("baseModel", {}).get("champion") or {}) if waits else {}
    lines = {_spec(job).get("modelLine"), champion.get("modelLine")}
    return [address(namespace_of(job), line) for line in lines if line]


def _run_by_profile(job: Manifest) -> Iterable[str]:
    if has_ended(job):
        return ()
    spec = _spec(job)
    evaluated_on = (spec.get("evaluation") or {}).get("profile")
    return {_profile(job), *filter(None, (evaluated_on, _resolved(job).get("profile")))}


def _evaluation_by_checkpoint(evaluation: Manifest) -> Iterator[str]:
    for name in _spec(evaluation)["checkpoints"]:
        yield address(namespace_of(evaluation), name)


def _evaluation_by_dataset(evaluation: Manifest) -> Iterator[str]:
    if not has_ended(evaluation) and not _resolved(evaluation).get("datasetVersion"):
        yield address(namespace_of(evaluation), _spec(evaluation)["dataset"]["ref"]["name"])


def _evaluation_by_profile(evaluation: Manifest) -> Iterable[str]:
    if has_ended(evaluation):
        return ()
    return {_profile(evaluation), *filter(None, [_resolved(evaluation).get("profile")])}


def _endpoint_by_line(endpoint: Manifest) -> Iterable[str]:
    followed = {(model.get("follow") or {}).get("modelLine") for model in _spec(endpoint).get("models", ())}
    return {address(namespace_of(endpoint), model_line) for model_line in followed if model_line}


def _endpoint_by_profile(endpoint: Manifest) -> Iterator[str]:
    yield _profile(endpoint)


def _run_by_state(job: Manifest) -> Iterator[str]:
    several = (_spec(job).get("compute") or {}).get("nodes", 1) > 1
    if several and (ConditionType.RECONCILING, "True", Reason.UNSCHEDULABLE) in _conditions(job):
        yield PARTLY_SCHEDULED
    yield from _waits_for_budget(job)


def _waits_for_budget(job: Manifest) -> Iterator[str]:
    if any(
        (ConditionType.RECONCILING, "True", reason) in _conditions(job)
        for reason in (Reason.BUDGET_EXHAUSTED, Reason.BUDGET_NOT_COUNTED)
    ):
        yield OVER_BUDGET


def waits_for_budget_of(obj: Manifest) -> str | None:
    """The ComputeProfile whose budget a run or Evaluation waits for, or DEFAULT_PROFILE.

    None if it does not wait for one.
    """
    if "deletionTimestamp" in obj["metadata"] or not any(_waits_for_budget(obj)):
        return None
    own = _resolved(obj).get("profile") or _profile(obj)
    is_trained = any(state[:2] == (ConditionType.TRAINED, "True") for state in _conditions(obj))
    return ((_spec(obj).get("evaluation") or {}).get("profile") if is_trained else None) or own


Line = tuple[str, str]
"""Namespace, and a ComputeProfile or DEFAULT_PROFILE."""
PlaceInLine = tuple[str, Key]
"""Creation time and key of an object: the oldest one is the first of its line."""


def place_in_line(obj: Manifest) -> tuple[Line, PlaceInLine] | None:
    """Where a run or Evaluation waits for a budget; None if it does not."""
    profile, namespace = waits_for_budget_of(obj), namespace_of(obj)
    return None if profile is None else ((namespace, profile), age_of(obj))


def age_of(obj: Manifest) -> PlaceInLine:
    """Place in a line, whether or not the object waits."""
    metadata = obj["metadata"]
    return metadata.get("creationTimestamp", ""), Key(obj["kind"], namespace_of(obj), metadata["name"])


def _endpoint_by_state(endpoint: Manifest) -> Iterator[str]:
    if is_rolling(endpoint):
        yield ROLLING
    if (ConditionType.RECONCILING, "True", Reason.QUEUED) in _conditions(endpoint):
        yield QUEUED


def _dataset_by_state(dataset: Manifest) -> Iterator[str]:
    current = _status(dataset).get("observedGeneration") == dataset["metadata"].get("generation", 0)
    if not (current and any(ends_dataset(*state) for state in _conditions(dataset))):
        yield UNSETTLED


def _by_digest(record: Manifest) -> Iterator[str]:
    digest = _spec(record).get("digest")
    if digest:
        yield digest


def version_owner(kind: str, namespace: str, name: str) -> str:
    """Value of BY_DATASET_OF; with the kind, because a run with dataset.source can have a Dataset's name."""
    return f"{kind}/{address(namespace, name)}"


def _by_dataset_of(version: Manifest) -> Iterator[str]:
    yield _owner_of_version(version)


def _owner_of_version(version: Manifest) -> str:
    kind = version["metadata"].get("labels", {}).get(OWNER_KIND, "")
    return version_owner(kind, namespace_of(version), version["spec"]["dataset"])


def place_in_history(version: Manifest) -> tuple[str, tuple[str, str]] | None:
    """The `version_owner` of a DatasetVersion, its creation time and name; None if it is being deleted."""
    metadata = version["metadata"]
    if "deletionTimestamp" in metadata:
        return None
    return _owner_of_version(version), (metadata.get("creationTimestamp", ""), metadata["name"])


def _profile(obj: Manifest) -> str:
    """The ComputeProfile that the object names, or DEFAULT_PROFILE."""
    spec = _spec(obj)
    named = spec if obj["kind"] == "Evaluation" else spec.get("compute") or {}
    return named.get("profile") or DEFAULT_PROFILE


def _spec(manifest: Manifest) -> dict[str, Any]:
    spec: dict[str, Any] = manifest.get("spec") or {}
    return spec


def _status(manifest: Manifest) -> dict[str, Any]:
    status: dict[str, Any] = manifest.get("status") or {}
    return status


def _resolved(job: Manifest) -> dict[str, Any]:
    resolved: dict[str, Any] = _status(job).get("resolved") or {}
    return resolved


def _conditions(manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    for each in _status(manifest).get("conditions") or ():
        yield each["type"], each["status"], each.get("reason", "")


INDEXERS: Final[Mapping[str, Mapping[str, Indexer]]] = {
    "FineTuneJob": {
        BY_DATASET: _run_by_dataset,
        BY_PARENT: _run_by_parent,
        BY_LINE: _run_by_line,
        BY_PROFILE: _run_by_profile,
        BY_CONTENT: contents,
        BY_STATE: _run_by_state,
    },
    "Dataset": {BY_STATE: _dataset_by_state},
    "DatasetVersion": {BY_DIGEST: _by_digest, BY_DATASET_OF: _by_dataset_of},
    "Checkpoint": {BY_DIGEST: _by_digest},
    "Evaluation": {
        BY_CHECKPOINT: _evaluation_by_checkpoint,
        BY_DATASET: _evaluation_by_dataset,
        BY_PROFILE: _evaluation_by_profile,
        BY_CONTENT: contents,
        BY_STATE: _waits_for_budget,
    },
    "InferenceDeployment": {
        BY_LINE: _endpoint_by_line,
        BY_PROFILE: _endpoint_by_profile,
        BY_CONTENT: contents,
        BY_STATE: _endpoint_by_state,
    },
}
"""Indexers by kind and index."""
