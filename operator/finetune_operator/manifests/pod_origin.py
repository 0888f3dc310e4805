# SPDX-License-Identifier: Apache-2.0
"""Origin of pods: what shaped them, as annotations of their Job or Deployment, recorded when it is created.

The annotations show whether a new object would have other pods. Live pods do not show it, because admission
may change them, for example a tag to a digest.
"""

import json
import re
from collections.abc import Mapping
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
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
    operator, which may change every template, is not a change unless `images_count`.
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
