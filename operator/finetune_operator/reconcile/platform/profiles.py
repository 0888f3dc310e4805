# SPDX-License-Identifier: Apache-2.0
"""The ComputeProfile of an object: which one, whether the object may use it, its devices and the store.

If an object cannot use a profile or store, the message says what the user has to do.
"""

from collections.abc import Callable, Iterable
from typing import Final

from finetune_operator.api.compute_profile import BUILT_IN, DEFAULT_PROFILE_LABEL, ComputeProfile
from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.pod_resources import CPU, quantity_value
from finetune_operator.api.references import NAMESPACE_PLACEHOLDER, StoreReference
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import NAMESPACE
from finetune_operator.manifests.engines.vllm import argument_problems
from finetune_operator.manifests.trainer_config import choose_trainer
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.stage_table import TRAIN_PODS
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.accelerators import PRODUCT_LABELS, DeviceFacts, find_card
from finetune_trainer.contract.base import CONTRACT_VERSION, CONTRACT_VERSIONS, Contract


def device_facts(profile: ComputeProfile) -> DeviceFacts | None:
    """Facts of `spec.accelerator`, completed by the table of known cards; None if nothing is known.

    Without a product in `spec.accelerator`, the nodes' label that train pods require names it.
    """
    given = profile.spec.accelerator
    if given.resource == CPU:
        return None
    selector = profile.spec.pods_of(TRAIN_PODS).node_selector
    labels = (selector.get(label) for label in PRODUCT_LABELS)
    product = given.product or next(filter(None, labels), None)
    card = find_card(product)
    memory = None if given.memory is None else int(quantity_value(given.memory))
    facts = DeviceFacts(
        product=product,
        memory_bytes=memory or (card.memory_bytes if card else None),
        peak_teraflops=given.peak_teraflops or (card.peak_teraflops if card else None),
    )
    return None if facts == DeviceFacts() else facts


def host_memory_bytes(profile: ComputeProfile) -> int | None:
    """Memory of a train pod if its devices are CPU cores; None for other devices, or if none is set."""
    given = profile.spec.pods_of(TRAIN_PODS).resources
    if given is None or profile.spec.accelerator.resource != CPU:
        return None
    return int(quantity_value(given.memory))


FindProfile = Callable[[str | None, str, str, Snapshot], ComputeProfile | Blocked]
"""Type of `resolve_profile` and `named_profile`."""

MAX_NAMES_IN_MESSAGE: Final = 8
LABELS_RECHECK_SECONDS: Final = 20.0


def _names(snapshot: Snapshot, namespace: str) -> str:
    usable = sorted(
        name for name, profile in snapshot.profiles.items() if is_allowed(profile, namespace, snapshot)
    )
    shown = ", ".join(usable[:MAX_NAMES_IN_MESSAGE])
    hidden = len(usable) - MAX_NAMES_IN_MESSAGE
    more = f" and {hidden} more" if hidden > 0 else ""
    return (
        f"; profiles for this namespace: {shown}{more}" if shown else "; no profile exists for this namespace"
    )


def is_allowed(profile: ComputeProfile, namespace: str, snapshot: Snapshot) -> bool:
    """Whether objects of this namespace, that of the pass, are allowed to use the profile."""
    offered = profile.spec.namespaces
    if offered is None or offered.selector is None or namespace in offered.names:
        return _is_named(profile, namespace)
    labels = snapshot.namespace_labels(namespace)
    return labels is not None and offered.selector.selects(labels)


def _is_named(profile: ComputeProfile, namespace: str) -> bool:
    """Whether the profile allows the namespace by name, or allows all."""
    offered = profile.spec.namespaces
    return offered is None or namespace in offered.names


def _depends_on_labels(profile: ComputeProfile, namespace: str) -> bool:
    offered = profile.spec.namespaces
    return offered is not None and offered.selector is not None and namespace not in offered.names


def label_needs(names: Iterable[str | None], namespace: str, snapshot: Snapshot) -> Needs:
    """The namespace of an object, if a pass needs its labels for the profiles that the object names.

    They decide whether it may use a profile, and which others a message about a profile lists.
    """
    for name in names:
        profile = named_profile(name, "", namespace, snapshot)
        listed = snapshot.profiles.values() if isinstance(profile, Blocked) else (profile,)
        if any(_depends_on_labels(each, namespace) for each in listed):
            return {NAMESPACE: frozenset({namespace})}
    return NOTHING


def resolve_profile(
    name: str | None, field: str, namespace: str, snapshot: Snapshot
) -> ComputeProfile | Blocked:
    """The named profile, or the default one, if the namespace may use it.

    Args:
        name: name of the profile; None for the default one.
        field: field of the spec that names the profile, for the message.
        namespace: namespace of the object.
        snapshot: snapshot with what `label_needs` named.
    """
    profile = named_profile(name, field, namespace, snapshot)
    if isinstance(profile, Blocked) or is_allowed(profile, namespace, snapshot):
        return profile
    found = snapshot.find(NAMESPACE, namespace)
    if found is not None and is_refusal(found):
        return Blocked(
            Reason.FORBIDDEN,
            f"ComputeProfile {profile.name} allows namespaces by labels (namespaces.selector), but the"
            f" operator cannot read those of namespace {namespace}: {found['message']}: the chart's roles"
            " grant this right, and helm upgrade restores them",
            requeue_after=LABELS_RECHECK_SECONDS,
        )
    return _not_allowed(
        profile,
        namespace,
        snapshot,
        "to give the namespace the labels of the profile's namespaces.selector",
        # Namespaces are not watched.
        LABELS_RECHECK_SECONDS,
    )


def named_profile(
    name: str | None, field: str, namespace: str, snapshot: Snapshot
) -> ComputeProfile | Blocked:
    """The named profile, or the default one, also if only labels can allow the namespace to use it.

    For what a pass looks up before it knows the labels. The arguments are those of `resolve_profile`.
    """
    if name is None:
        defaults = sorted(p.name for p in snapshot.profiles.values() if p.is_default)
        if len(defaults) > 1:
            return Blocked(
                Reason.DEFAULT_PROFILE_CONFLICT,
                "more than one ComputeProfile is marked as the default"
                f" ({', '.join(defaults[:MAX_NAMES_IN_MESSAGE])}): leave {DEFAULT_PROFILE_LABEL} on one of"
                f" them, or set {field}",
            )
        if not defaults:
            return Blocked(
                Reason.PROFILE_NOT_FOUND,
                f"{field} is not set, and no ComputeProfile is the default: annotate one with"
                f' {DEFAULT_PROFILE_LABEL}: "true"{_names(snapshot, namespace)}',
            )
        name = defaults[0]
    profile = snapshot.profiles.get(name)
    if profile is None:
        return Blocked(
            Reason.PROFILE_NOT_FOUND,
            f"ComputeProfile {name} of {field} does not exist: create it, or name another"
            f"{_names(snapshot, namespace)}",
        )
    if not _is_named(profile, namespace) and not _depends_on_labels(profile, namespace):
        how = "to add it to the profile's namespaces.names"
        return _not_allowed(profile, namespace, snapshot, how, None)
    return profile


def _not_allowed(
    profile: ComputeProfile, namespace: str, snapshot: Snapshot, how: str, requeue_after: float | None
) -> Blocked:
    return Blocked(
        Reason.PROFILE_NOT_ALLOWED,
        f"namespace {namespace} is not allowed to use ComputeProfile {profile.name}: ask the platform team"
        f" {how}, or name another{_names(snapshot, namespace)}",
        requeue_after=requeue_after,
    )


def check_trainer(profile: ComputeProfile) -> Blocked | None:
    """Whether this operator supports the contract of the profile's own trainer image."""
    contract = choose_trainer(profile, "").contract
    if contract in CONTRACT_VERSIONS:
        return None
    return Blocked(
        Reason.PROFILE_INVALID,
        f"ComputeProfile {profile.name} has images.trainerContract {contract}, but this"
        f" operator supports {' and '.join(map(str, CONTRACT_VERSIONS))}: use a trainer image of this release"
        " and remove images.trainerContract",
    )


def check_config(config: Contract, profile: ComputeProfile | None) -> Blocked | None:
    """Whether the trainer's version of the contract has every essential setting of this config."""
    unsent = config.unsupported_fields()
    if not unsent:
        return None
    where = f"ComputeProfile {profile.name}" if profile is not None else "the default ComputeProfile"
    return Blocked(
        Reason.PROFILE_INVALID,
        f"the trainer image does not support {', '.join(unsent)}, which this object sets: give {where} a"
        f" trainer image of this release, with images.trainerContract {CONTRACT_VERSION}, or remove the"
        " setting. A run that has started keeps its image, so make a new one",
    )


def check_engine_arguments(
    evaluation: EvaluationSettings | None, profile: ComputeProfile, field: str
) -> Blocked | None:
    """Whether the engine that generates the answers of the evaluation may get its arguments.

    `field` is the field of the spec that has them.
    """
    arguments = evaluation.extra_engine_arguments if evaluation is not None else ()
    message = "; ".join(argument_problems(arguments, field, profile))
    if arguments and profile.spec.serving.engine == BUILT_IN:
        message = (
            f"{field} needs the engine VLLM, and ComputeProfile {profile.name} has serving.engine:"
            f" {BUILT_IN}: use a profile with VLLM, or leave the field out"
        )
    return Blocked(Reason.UNSUPPORTED_BY_ENGINE, message, requeue_after=None) if message else None


def check_devices(profile: ComputeProfile, devices: int, field: str) -> Blocked | None:
    """Whether one pod may request this number of devices."""
    most = profile.spec.accelerator.max_per_pod
    if devices <= most:
        return None
    return Blocked(
        Reason.TOO_MANY_DEVICES,
        f"{field} is {devices}, but ComputeProfile {profile.name} allows {most} per pod: request fewer, or"
        " ask the platform team to raise the profile's accelerator.maxPerPod",
    )


def check_nodes(profile: ComputeProfile, nodes: int, field: str) -> Blocked | None:
    """Whether a run may have this number of pods."""
    limit = profile.spec.limits.nodes
    if limit is None or nodes <= limit:
        return None
    return Blocked(
        Reason.TOO_MANY_NODES,
        f"{field} is {nodes}, but ComputeProfile {profile.name} allows {limit}: request fewer, or ask the"
        " platform team to raise the profile's limits.nodes",
    )


def resolve_store(
    own: StoreReference | None, profile: ComputeProfile | None, namespace: str
) -> StoreReference | Blocked:
    """The store of an object of this namespace: its own, or else that of its profile."""
    if own is not None:
        return own
    if profile is None:
        return Blocked(
            Reason.STORE_MISSING,
            "no store: set spec.store.uri, for example pvc://artifacts, or mark a ComputeProfile that has a"
            f' store with {DEFAULT_PROFILE_LABEL}: "true"',
        )
    store = profile.spec.store
    if store is None:
        return Blocked(
            Reason.STORE_MISSING,
            f"no store: set spec.store.uri, for example pvc://artifacts, or spec.store of ComputeProfile"
            f" {profile.name}",
        )
    return store.model_copy(update={"uri": store.uri.replace(NAMESPACE_PLACEHOLDER, namespace)})
