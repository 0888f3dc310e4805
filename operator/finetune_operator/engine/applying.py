"""Tells whether an object in the cluster already carries what would be applied, without asking."""

import hashlib
import json
from typing import Any

from finetune_operator.plan import Manifest


class Stamp:
    """Marks applied objects with a hash of what was applied.

    That an object has all applied fields says nothing of fields that an older version applied and this one
    does not; the hash does.

    Args:
        annotation: its key.
    """

    def __init__(self, annotation: str) -> None:
        self._annotation = annotation

    def on(self, manifest: Manifest) -> Manifest:
        """A copy with the annotation, and without what names one state of the object."""
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "resourceVersion"}
        stable = {**manifest, "metadata": {key: value for key, value in metadata.items() if key != "uid"}}
        digest = hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:16]
        annotations = {**(metadata.get("annotations") or {}), self._annotation: digest}
        return {**manifest, "metadata": {**metadata, "annotations": annotations}}

    def matches(self, existing: Manifest, manifest: Manifest) -> bool:
        """Whether applying the (stamped) manifest would change nothing."""
        return _contains(existing, manifest)


def _contains(existing: Any, wanted: Any) -> bool:
    """Whether `existing` has everything that `wanted` has; the API server adds defaults of its own."""
    if isinstance(wanted, dict):
        return isinstance(existing, dict) and all(
            key in existing and _contains(existing[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(existing, list)
            and len(existing) == len(wanted)
            and all(map(_contains, existing, wanted))
        )
    return bool(existing == wanted)
