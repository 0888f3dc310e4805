# SPDX-License-Identifier: Apache-2.0
"""Detect and correct changes by others in a revision's Deployment.

A later release can build a different Deployment for the same revision. So a live Deployment is compared with
the spec that it was created with, which is in its annotation, and not with what this release would build.
Fields that the operator did not set, such as defaults of the API server and additions of admission webhooks,
are ignored. Deployments whose annotation was removed, or edited to something else than a spec, stay
unchanged.
"""

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from finetune_operator.api.pod_resources import MAX_QUANTITY_LENGTH, QUANTITY, quantity_value
from finetune_operator.manifests.endpoint import build_correction
from finetune_operator.manifests.labels import CORRECTED, CREATED_SPEC
from finetune_operator.plan import Apply, Manifest

REVISION_PART: Final = "revision"
"""Part of the Deployment that a correction applies; every release applies the replicas separately."""
MAX_NAMES_IN_MESSAGE: Final = 3
GENERATION: Final = re.compile("[0-9]{1,18}")
EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
MERGE_KEYS: Final = ("mountPath", "containerPort", "name")
"""Fields by which the API server identifies items of a list, in the order in which they are tried."""


def changed_fields(deployment: Manifest) -> tuple[str, ...]:
    """Paths of the fields whose value differs from the created one."""
    return tuple(_changed(_created_spec(deployment), deployment["spec"], "spec"))


def correction(deployment: Manifest) -> Apply | None:
    """An apply that restores the created spec; None if an earlier correction was changed again."""
    annotations, generation = deployment["metadata"]["annotations"], deployment["metadata"]["generation"]
    corrected = annotations.get(CORRECTED)
    # The correction itself is at most one generation. If there was no later generation, only an admission
    # webhook can have changed the spec, and it would do so again.
    if corrected is not None and GENERATION.fullmatch(corrected) and generation <= int(corrected) + 1:
        return None
    return Apply(build_correction(deployment, _created_spec(deployment)), part=REVISION_PART)


def describe_fields(deployment: Manifest, paths: tuple[str, ...]) -> str:
    """The Deployment and the changed fields, for messages."""
    more = f" and {len(paths) - MAX_NAMES_IN_MESSAGE} more" if len(paths) > MAX_NAMES_IN_MESSAGE else ""
    return f"Deployment {deployment['metadata']['name']}: {', '.join(paths[:MAX_NAMES_IN_MESSAGE])}{more}"


def _created_spec(deployment: Manifest) -> dict[str, Any]:
    """The spec in the annotation; empty if there is none. Whoever may edit the Deployment may edit it."""
    try:
        created = json.loads(deployment["metadata"].get("annotations", {}).get(CREATED_SPEC, ""))
    except (ValueError, RecursionError):
        return {}
    return created if isinstance(created, dict) else {}


def _changed(created: Any, live: Any, path: str) -> Iterator[str]:
    if isinstance(created, dict) and isinstance(live, dict):
        for name, value in created.items():
            yield from _changed(value, live.get(name), f"{path}.{name}")
    elif isinstance(created, list) and isinstance(live, list):
        yield from _changed_items(created, live, path)
    elif not _is_equal(created, live):
        yield path


def _changed_items(created: list[Any], live: list[Any], path: str) -> Iterator[str]:
    key = _merge_key(created)
    if key is None:
        if len(created) != len(live) or any(
            change for one, other in zip(created, live, strict=True) for change in _changed(one, other, path)
        ):
            yield path
        return
    found = {item[key]: item for item in live if isinstance(item, dict) and _is_name(item.get(key))}
    for item in created:
        yield from _changed(item, found.get(item[key]), f"{path}[{item[key]}]")


def _merge_key(items: list[Any]) -> str | None:
    keys = (key for key in MERGE_KEYS if items)
    return next((key for key in keys if all(_is_name(item.get(key)) for item in _objects(items))), None)


def _is_name(value: object) -> bool:
    return isinstance(value, str | int)


def _objects(items: list[Any]) -> list[dict[str, Any]]:
    """The items; if they are not objects, one item without keys."""
    return items if all(isinstance(item, dict) for item in items) else [{}]


def _is_equal(created: Any, live: Any) -> bool:
    if created == live:
        return True
    if created in EMPTY and live in EMPTY:
        # The API server omits empty values.
        return True
    size = _size(created)
    return size is not None and size == _size(live)


def _size(value: Any) -> Fraction | None:
    """The value of a quantity, because the API server writes 0.5 as 500m; None if it is not a quantity."""
    if not isinstance(value, str) or len(value) > MAX_QUANTITY_LENGTH or not re.match(QUANTITY, value):
        return None
    return quantity_value(value)
