"""What others have changed in a revision's Deployment, and how it is put back.

A later release builds another Deployment for the same revision, so a live one is not compared with what would
be built now but with what it was created with, which its annotation holds. Fields that the operator did not
set are free: the API server's defaults, and what admission adds. Deployments of earlier releases have no
annotation and are left as they are.
"""

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from finetune_operator.api.podresources import QUANTITY
from finetune_operator.manifests.labels import CORRECTED, CREATED_SPEC
from finetune_operator.manifests.serving import build_correction
from finetune_operator.plan import Apply, Manifest

REVISION_PART: Final = "revision"
"""The replicas are applied apart, by every release."""
MAX_NAMES_IN_MESSAGE: Final = 3
EMPTY: Final[tuple[Any, ...]] = (None, "", [], {})
UNITS: Final = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    unit: Fraction(base**power)
    for base, units in ((1000, ("k", "M", "G", "T")), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, unit in enumerate(units, 1)
}
"""Of the quantities that a ComputeProfile may name."""
MERGE_KEYS: Final = ("mountPath", "containerPort", "name")
"""By which the API server tells items of lists apart, in the order in which an item is asked for one."""


def changed(deployment: Manifest) -> tuple[str, ...]:
    """Paths of the fields that have another value than they were created with."""
    created = deployment["metadata"].get("annotations", {}).get(CREATED_SPEC)
    return () if created is None else tuple(_changed(json.loads(created), deployment["spec"], "spec"))


def correction(deployment: Manifest) -> Apply | None:
    """What puts the created spec back; None where that was done and did not hold."""
    annotations, generation = deployment["metadata"]["annotations"], deployment["metadata"]["generation"]
    corrected = annotations.get(CORRECTED)
    # The correction itself was at most one generation. Without another one nobody but admission can have
    # changed it, and would do so again.
    if corrected is not None and corrected.isdigit() and generation <= int(corrected) + 1:
        return None
    return Apply(build_correction(deployment, json.loads(annotations[CREATED_SPEC])), part=REVISION_PART)


def described(deployment: Manifest, paths: tuple[str, ...]) -> str:
    """Which fields of which Deployment."""
    more = f" and {len(paths) - MAX_NAMES_IN_MESSAGE} more" if len(paths) > MAX_NAMES_IN_MESSAGE else ""
    return f"Deployment {deployment['metadata']['name']}: {', '.join(paths[:MAX_NAMES_IN_MESSAGE])}{more}"


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
    found = {item.get(key): item for item in live}
    for item in created:
        yield from _changed(item, found.get(item[key]), f"{path}[{item[key]}]")


def _merge_key(items: list[Any]) -> str | None:
    return next((key for key in MERGE_KEYS if items and all(key in item for item in _objects(items))), None)


def _objects(items: list[Any]) -> list[dict[str, Any]]:
    """The items, or one without any key where they are not objects."""
    return items if all(isinstance(item, dict) for item in items) else [{}]


def _is_equal(created: Any, live: Any) -> bool:
    if created == live:
        return True
    if created in EMPTY and live in EMPTY:
        # The API server leaves empty values out.
        return True
    size = _size(created)
    return size is not None and size == _size(live)


def _size(value: Any) -> Fraction | None:
    """What a quantity stands for: the API server writes 0.5 as 500m. None where it is none."""
    if not isinstance(value, str) or not re.match(QUANTITY, value):
        return None
    unit = value.lstrip("0123456789.")
    return Fraction(value.removesuffix(unit)) * UNITS[unit]
