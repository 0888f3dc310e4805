# SPDX-License-Identifier: Apache-2.0
"""The kind InferenceDeployment."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inferencedeployment.reconciler import needs, reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_LINE,
    BY_PROFILE,
    BY_STATE,
    QUEUED,
    ROLLING,
    address,
    key_of,
    namespace_of,
    needed_contents,
    profile_of_compute,
    read_conditions,
    read_spec,
    read_status,
)
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    KindRow,
    LockName,
    indexed_keys,
    record_key,
)
from finetune_operator.status.reasons import ConditionType, Reason


def rollout_lock(endpoint: InferenceDeployment, profiles: Mapping[str, ComputeProfile]) -> LockName | None:
    """The lock of an endpoint's pass: rollouts of a profile are counted one by one.

    Without a limit of the profile they are counted per namespace.
    """
    named = endpoint.spec.compute.profile
    if named is None:
        own = [profile for profile in profiles.values() if profile.is_default]
    else:
        own = [profiles[named]] if named in profiles else []
    if not own:
        return None
    limiting = next((profile for profile in own if profile.spec.limits.concurrent_rollouts is not None), None)
    if limiting is None:
        return ("rollouts", own[0].name, endpoint.namespace)
    return ("rollouts", limiting.name)


def _lock(key: Key, objects: IndexedObjects) -> LockName | None:
    endpoint = objects.resource(key)
    if not isinstance(endpoint, InferenceDeployment):
        return None
    return rollout_lock(endpoint, objects.computeprofiles())


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    index = objects.checkpoints(change.namespace)
    for state in change.states:
        for model in read_status(state).get("models", ()):
            checkpoint = index.get(model.get("checkpoint") or "")
            if checkpoint is not None:
                yield record_key(checkpoint)
    # The end of a rollout frees a slot for queued endpoints of all namespaces.
    was_rolling = change.old is not None and _is_rolling(change.old)
    if was_rolling and not (change.new is not None and _is_rolling(change.new)):
        own = key_of(change.known)
        yield from (key for key in indexed_keys(objects, BY_STATE, QUEUED) if key != own)


def _is_rolling(endpoint: Manifest) -> bool:
    """Whether a revision of the endpoint is starting, as the first or next to another one.

    A paused rollout is not.
    """
    if read_spec(endpoint).get("strategy", {}).get("paused"):
        return False
    revisions = read_status(endpoint).get("revisions", ())
    return any(revision.get("state") == "RollingOut" for revision in revisions)


def _contents(endpoint: Manifest) -> frozenset[str]:
    """What it serves and pins. It may be removed after that, in whichever namespace the record is."""
    served = read_status(endpoint).get("models", ())
    pins = [model.get("pin") or {} for model in read_spec(endpoint).get("models", ())]
    return needed_contents(
        endpoint,
        [each.get("digest") for each in (*served, *pins)],
        [each.get("checkpoint") for each in (*served, *pins)],
    )


def _by_line(endpoint: Manifest) -> Iterable[str]:
    models = read_spec(endpoint).get("models", ())
    followed = {(model.get("follow") or {}).get("modelLine") for model in models}
    return {address(namespace_of(endpoint), model_line) for model_line in followed if model_line}


def _by_profile(endpoint: Manifest) -> Iterator[str]:
    yield profile_of_compute(endpoint)


def _by_state(endpoint: Manifest) -> Iterator[str]:
    if _is_rolling(endpoint):
        yield ROLLING
    if (ConditionType.RECONCILING, "True", Reason.QUEUED) in read_conditions(endpoint):
        yield QUEUED


KIND: Final = KindRow(
    model=InferenceDeployment,
    reconcile=reconcile,
    own_needs=needs,
    relations=_relations,
    own_indexers={BY_LINE: _by_line, BY_PROFILE: _by_profile, BY_STATE: _by_state},
    contents=_contents,
    lock=_lock,
    is_listed_first=True,
    workload="endpoint",
)
