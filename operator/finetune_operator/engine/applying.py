# SPDX-License-Identifier: Apache-2.0
"""Detect from the cache whether an apply would change nothing."""

import hashlib
import json
from typing import Any, Final

from finetune_operator.plan import Manifest

SELECTOR: Final = "selector"


class Stamp:
    """Annotation of applied objects: a hash of the applied manifest.

    An object can have all applied fields and still have fields that only an older release applied. The hash
    detects this.

    Args:
        annotation: key of the annotation.
    """

    def __init__(self, annotation: str) -> None:
        self._annotation = annotation

    def on(self, manifest: Manifest) -> Manifest:
        """A copy with the annotation and without the resourceVersion."""
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
        stable = {**manifest, "metadata": {key: value for key, value in metadata.items() if key != "uid"}}
        digest = hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]
        annotations = {**(metadata.get("annotations") or {}), self._annotation: digest}
        return {**manifest, "metadata": {**metadata, "annotations": annotations}}

    def matches(self, existing: Manifest, manifest: Manifest) -> bool:
        """Whether an apply of the (stamped) manifest would change nothing."""
        return contains(existing, manifest)


def contains(existing: Any, wanted: Any) -> bool:
    """Whether `existing` has everything that `wanted` has. It may have more: the API server adds defaults.

    A selector must be equal, because it has no defaults, and one more label in it selects fewer pods.
    """
    if isinstance(wanted, dict):
        return isinstance(existing, dict) and all(
            key in existing
            and (existing[key] == value if key == SELECTOR else contains(existing[key], value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(existing, list)
            and len(existing) == len(wanted)
            and all(map(contains, existing, wanted))
        )
    return bool(existing == wanted)
