# SPDX-License-Identifier: Apache-2.0
"""What shapes pods besides the operator: the entries of a ComputeProfile, and the record of what shaped them.

The entries of `pods` set placement and security. Annotations record what shaped the pods when their Job or
Deployment is created, and so show whether a new one would have other pods. Live pods do not show it, because
admission may change them, for example a tag to a digest.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.endpoint_access import LabelSelector
from finetune_operator.api.meta import Model
from finetune_operator.api.pod_resources import quantity_value
from finetune_operator.api.pod_template import Affinity, PodStage, PodTemplate, PodUser
from finetune_operator.manifests.answer_engine import ANSWERS_CONTAINER
from finetune_operator.manifests.labels import (
    IMAGES,
    PROFILE_DIGEST,
    STORE,
    STORE_CREDENTIALS,
    TEMPLATE_DIGEST,
    short_hash,
)
from finetune_operator.plan import Manifest, drop_empty
from finetune_trainer.contract.environment import CONFIG_ENV

DIGEST_LENGTH: Final = 16
"""Hexadecimal digits of a recorded digest."""

NONCE_FIELD: Final = re.compile(r',?"nonce":"[0-9a-f]+"')
"""The nonce of a config in its JSON. Quotes within a text of it are escaped, so no text matches."""

SHAPES_PODS: Final[Mapping[str, bool | set[str]]] = {
    "accelerator": {"resource", "max_per_pod"},
    "limits": {"nodes"},
    "pods": True,
    "serving": {"engine", "model_cache"},
    "store": True,
    "kueue": True,
}
"""Fields of a profile's spec, all or some of their own fields, that decide whether a pod can start. `images`
are recorded by themselves."""
SHAPES_NO_PODS: Final = frozenset({"images", "namespaces", "cost", "allow"})
"""The other fields. An edit of them replaces nothing."""


def origin_annotations(profile: ComputeProfile | None, template: Manifest) -> dict[str, str]:
    """What shaped the pods of this template. Pods without a profile have no digest of one."""
    marks = {
        TEMPLATE_DIGEST: _digest(_without_nonces(template)),
        IMAGES: ",".join(sorted({each["image"] for each in _containers(template)})),
    }
    return marks if profile is None else {PROFILE_DIGEST: profile_digest(profile), **marks}


def profile_digest(profile: ComputeProfile) -> str:
    """Digest of what shapes pods. Without defaults: those of a newer release must not change it."""
    spec = profile.spec.model_dump(
        mode="json", by_alias=True, exclude_defaults=True, include=dict(SHAPES_PODS)
    )
    return _digest(drop_empty(spec))


def find_changed_origin(existing: Manifest, new: Manifest, *, images_count: bool) -> str | None:
    """What has changed since an object was created, if a new one would have other pods; else None.

    None also for objects without the annotations, and if only one of both has a profile. An upgrade of the
    operator, which may change every template, is no change unless `images_count`.
    """
    old, wanted = _annotations(existing), _annotations(new)
    if TEMPLATE_DIGEST not in old or old[TEMPLATE_DIGEST] == wanted.get(TEMPLATE_DIGEST):
        return None
    if (PROFILE_DIGEST in old) != (PROFILE_DIGEST in wanted):
        return None
    causes = {"its ComputeProfile": (PROFILE_DIGEST,), "its store": (STORE, STORE_CREDENTIALS)}
    if images_count:
        causes["its image"] = (IMAGES,)
    changed = {key for key in {*old, *wanted} if old.get(key) != wanted.get(key)}
    return next((cause for cause, keys in causes.items() if not changed.isdisjoint(keys)), None)


def _without_nonces(template: Manifest) -> Manifest:
    """The template without the nonces in its configs, which each process of the operator chooses anew."""
    spec = dict(template["spec"])
    for kind in ("initContainers", "containers"):
        spec[kind] = [
            {**each, "env": [_without_nonce(variable) for variable in each.get("env", ())]}
            if any(variable["name"] == CONFIG_ENV for variable in each.get("env", ()))
            else each
            for each in spec.get(kind, ())
        ]
        if kind not in template["spec"]:
            del spec[kind]
    return {**template, "spec": spec}


def _without_nonce(variable: Manifest) -> Manifest:
    if variable["name"] != CONFIG_ENV or "value" not in variable:
        return variable
    return {**variable, "value": NONCE_FIELD.sub("", variable["value"])}


def _annotations(manifest: Manifest) -> dict[str, str]:
    annotations: dict[str, str] = manifest["metadata"].get("annotations", {})
    return annotations


def _containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _digest(content: Manifest) -> str:
    return short_hash(json.dumps(content, sort_keys=True), length=DIGEST_LENGTH)


USER_VARIABLE: Final = "USER"
USER_FIELDS: Final = ("runAsUser", "runAsGroup", "fsGroup")
NETWORK_ANNOTATIONS: Final = ("k8s.v1.cni.cncf.io/", "v1.multus-cni.io/")
"""Begin of the names of annotations that attach further networks to a pod."""


def apply_pod_entries(
    template: Manifest,
    profile: ComputeProfile | None,
    names: Collection[PodStage],
    group: Mapping[str, str],
    *,
    isolated: bool = False,
) -> Manifest:
    """The pod template with what the entries of the profile say; unchanged if none is for it.

    Args:
        template: metadata and spec of the pod, as the operator built it.
        profile: the ComputeProfile, if the pod has one.
        names: names of the pod in the entries.
        group: labels of the pods of the same stage and run, or of the same revision. They are the default
            of selectors.
        isolated: whether the pod may not get further networks, to which its NetworkPolicy does not apply.
    """
    if profile is None:
        return template
    additions = profile.spec.pods_of(names)
    metadata, spec = template["metadata"], template["spec"]
    user = additions.security_context
    if user is not None:
        spec = {**spec, "securityContext": _with_user(spec["securityContext"], user)}
    spec = {**spec, **_placement(spec, additions, group)}
    for containers in ("initContainers", "containers"):
        if containers in spec:
            spec[containers] = [_container(each, additions, containers) for each in spec[containers]]
            if user is not None:
                spec[containers] = [_named_user(each) for each in spec[containers]]
    if additions.resource_claims:
        spec["resourceClaims"] = [
            {key: value for key, value in claim.to_dict().items() if key != "request"}
            for claim in additions.resource_claims
        ]
    labels = {**additions.labels, **metadata["labels"]}
    added = {
        name: value
        for name, value in additions.annotations.items()
        if not (isolated and name.startswith(NETWORK_ANNOTATIONS))
    }
    annotations = {**added, **metadata.get("annotations", {})}
    metadata = {**metadata, "labels": labels, **({"annotations": annotations} if annotations else {})}
    return {**template, "metadata": metadata, "spec": spec}


def _placement(spec: Manifest, additions: PodTemplate, group: Mapping[str, str]) -> Manifest:
    """The fields of the pod's spec that the additions change and that are not of its containers."""
    spread = [_selecting(each.to_dict(), group) for each in additions.topology_spread_constraints]
    fields = {
        "nodeSelector": additions.node_selector,
        "tolerations": _dicts(additions.tolerations),
        "runtimeClassName": additions.runtime_class_name,
        "schedulerName": additions.scheduler_name,
        "priorityClassName": additions.priority_class_name,
        "affinity": _affinity(additions.affinity, group) if additions.affinity else None,
        # Those of the endpoint's user come first.
        "topologySpreadConstraints": spec.get("topologySpreadConstraints", spread),
        "imagePullSecrets": _dicts(additions.image_pull_secrets),
    }
    return {name: value for name, value in fields.items() if value}


def _dicts(items: tuple[Model, ...]) -> list[Manifest]:
    return [item.to_dict() for item in items]


def _affinity(affinity: Affinity, group: Mapping[str, str]) -> Manifest:
    manifest = affinity.to_dict()
    for kind in ("podAffinity", "podAntiAffinity"):
        if kind not in manifest:
            continue
        for rule, terms in manifest[kind].items():
            manifest[kind][rule] = [
                {**term, "podAffinityTerm": _selecting(term["podAffinityTerm"], group)}
                if "podAffinityTerm" in term
                else _selecting(term, group)
                for term in terms
            ]
    return manifest


def _selecting(term: Manifest, group: Mapping[str, str]) -> Manifest:
    """The term with a selector, because Kubernetes selects no pods with an absent one."""
    own = LabelSelector(match_labels=dict(group)).to_dict()
    return {"labelSelector": own, **term}


def _container(container: Manifest, additions: PodTemplate, kind: str) -> Manifest:
    resources = container["resources"]
    if kind == "containers" or container["name"] == ANSWERS_CONTAINER:
        resources = _with_more(resources, additions)
    ratio = additions.cpu_limit_request_ratio
    if ratio is not None:
        cpu = quantity_value(resources["requests"]["cpu"]) * Fraction(str(ratio))
        resources = {**resources, "limits": {**resources["limits"], "cpu": f"{math.ceil(cpu * 1000)}m"}}
    added = {variable.name for variable in additions.env}
    kept = [variable for variable in container["env"] if variable["name"] not in added]
    return {**container, "env": [*kept, *_dicts(additions.env)], "resources": resources}


def _named_user(container: Manifest) -> Manifest:
    """The container with a name of its user, because /etc/passwd of the image has no other uid."""
    named = any(variable["name"] == USER_VARIABLE for variable in container["env"])
    own = [] if named else [{"name": USER_VARIABLE, "value": "finetune"}]
    return {**container, "env": [*container["env"], *own]}


def _with_more(resources: Manifest, additions: PodTemplate) -> Manifest:
    more = {**resources, "limits": {**additions.extended_resources, **resources["limits"]}}
    if additions.resource_claims:
        more["claims"] = [
            {"name": claim.name, **({"request": claim.request} if claim.request else {})}
            for claim in additions.resource_claims
        ]
    return more


def _with_user(security: Manifest, user: PodUser) -> Manifest:
    kept = {name: value for name, value in security.items() if name not in USER_FIELDS}
    return {**kept, **{name: value for name, value in user.to_dict().items() if value}}
