# SPDX-License-Identifier: Apache-2.0
"""Apply the entries of `spec.pods` of a ComputeProfile to pods: placement, security, containers."""

import math
from collections.abc import Collection, Mapping
from fractions import Fraction
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.labels import LabelSelector
from finetune_operator.api.meta import Model
from finetune_operator.api.pod_resources import quantity_value
from finetune_operator.api.pod_template import Affinity, PodStage, PodTemplate, PodUser
from finetune_operator.manifests.answer_engine import ANSWERS_CONTAINER
from finetune_operator.plan import Manifest

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
