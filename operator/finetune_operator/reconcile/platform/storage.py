# SPDX-License-Identifier: Apache-2.0
"""Whether the claims that a stage's pod mounts exist and can be shared."""

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.references import AccessMode, StoreReference
from finetune_operator.engine.resources import CLAIM
from finetune_operator.manifests.volumes import parse_location, parse_source, parse_store
from finetune_operator.reconcile.inputs.related_types import Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Failed
from finetune_operator.status.reasons import Reason


def check_source(uri: str, field: str) -> Failed | None:
    """Whether the uri of a source or base model is valid; `field` names it in the message."""
    try:
        parse_source(uri)
    except ValueError as error:
        return Failed(Reason.INVALID_SPEC, f"{field}: {error}")
    return None


def check_form(store: StoreReference | None) -> Failed | None:
    """Whether the uri of an object's own store is valid."""
    try:
        if store is not None:
            parse_store(store.uri)
    except ValueError as error:
        return Failed(Reason.INVALID_SPEC, f"spec.store.uri: {error}")
    return None


def is_claim(uri: str) -> bool:
    """Whether a uri names a PersistentVolumeClaim, which belongs to one namespace."""
    return uri.startswith("pvc://")


def is_same_place(uri: str, namespace: str, other_namespace: str) -> bool:
    """Whether the uri of a store names the same place in two namespaces: a bucket does, a claim does not."""
    return namespace == other_namespace or not is_claim(uri)


def claim_name(uri: str | None) -> str | None:
    """Name of the PersistentVolumeClaim that a uri is in; None for buckets and the network."""
    if uri is None or not is_claim(uri):
        return None
    try:
        return parse_location(uri).name
    except ValueError:
        return None


def claims_of(*uris: str | None) -> Needs:
    """The PersistentVolumeClaims that these uris are in, as needs of a pass."""
    return {CLAIM: frozenset(name for name in map(claim_name, uris) if name is not None)}


def check_store(
    uri: str, profile: ComputeProfile | None, namespace: str, snapshot: Snapshot
) -> Blocked | None:
    """Whether the store's claim exists and pods on several nodes can mount it at the same time.

    Only pods check whether a bucket exists.
    """
    try:
        parse_store(uri)
    except ValueError as error:
        return Blocked(Reason.PROFILE_INVALID, f"store: {error}")
    name = claim_name(uri)
    if name is None:
        return None
    if snapshot.is_missing(CLAIM, name):
        return Blocked(
            Reason.STORE_NOT_FOUND,
            f"PersistentVolumeClaim {name} of store {uri} does not exist in namespace {namespace}:"
            f" create it (accessModes: [{_mode(profile)}])",
        )
    return _check_modes(name, f"store {uri}", profile, Reason.STORE_NOT_SHAREABLE, snapshot)


def check_model_cache(
    profile: ComputeProfile, store: str, namespace: str, snapshot: Snapshot
) -> Blocked | None:
    """Whether the claim of the profile's model cache exists, is not that of the store, and can be shared."""
    cache = profile.spec.serving.model_cache
    if cache is None or cache.claim is None:
        return None
    field = f"serving.modelCache of ComputeProfile {profile.name}"
    if cache.claim == claim_name(store):
        return Blocked(
            Reason.PROFILE_INVALID,
            f"{field} is PersistentVolumeClaim {cache.claim}, which is the store {store}: use a claim that"
            " only the operator's fill Jobs write to",
        )
    if snapshot.is_missing(CLAIM, cache.claim):
        return Blocked(
            Reason.MODEL_CACHE_NOT_FOUND,
            f"PersistentVolumeClaim {cache.claim} of {field} does not exist in namespace {namespace}: create"
            f" it (accessModes: [{_mode(profile)}]) with room for the models of its endpoints, or use a"
            " profile without serving.modelCache",
        )
    return _check_modes(cache.claim, field, profile, Reason.MODEL_CACHE_NOT_SHAREABLE, snapshot)


def _mode(profile: ComputeProfile | None) -> AccessMode:
    """Access mode of a claim that all pods can mount. Any StorageClass supports ReadWriteOnce."""
    store = profile.spec.store if profile is not None else None
    return store.access_mode if store is not None else "ReadWriteMany"


def _check_modes(
    name: str, what: str, profile: ComputeProfile | None, reason: Reason, snapshot: Snapshot
) -> Blocked | None:
    claim = snapshot.find(CLAIM, name)
    if claim is None:
        return None
    modes = claim.get("spec", {}).get("accessModes", ())
    if not {"ReadWriteMany", _mode(profile)}.isdisjoint(modes):
        return None
    return Blocked(
        reason,
        f"PersistentVolumeClaim {name} of {what} has accessModes {', '.join(modes) or 'none'}, so pods on"
        " other nodes cannot mount it: use a claim with ReadWriteMany, or set store.accessMode: ReadWriteOnce"
        " in the ComputeProfile if all pods run on one node",
    )


def check_claim(uri: str, field: str, reason: str, namespace: str, snapshot: Snapshot) -> Blocked | None:
    """Whether the claim of a source or base model exists."""
    name = claim_name(uri)
    if name is None or not snapshot.is_missing(CLAIM, name):
        return None
    return Blocked(
        reason,
        f"PersistentVolumeClaim {name} of {field} ({uri}) does not exist in namespace {namespace}:"
        " create it with the files in it",
    )
