# SPDX-License-Identifier: Apache-2.0
"""The kind ComputeProfile."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile, is_marked_default
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.computeprofile.reconciler import reconcile
from finetune_operator.reconcile.inputs.indexes import (
    BY_PROFILE,
    BY_STATE,
    DEFAULT_PROFILE,
    OVER_BUDGET,
    UNSETTLED,
)
from finetune_operator.reconcile.kind_table import (
    Change,
    IndexedObjects,
    KindRow,
    first_in_line,
    indexed_keys,
    is_live,
)
from finetune_operator.reconcile.platform.budgets import find_exhausted, is_counted


def _relations(change: Change, objects: IndexedObjects) -> Iterator[Key]:
    old, new = change.old, change.new
    if old is not None and new is not None and _text(old) == _text(new):
        # Of its status, other objects read only whether their namespace may use more.
        for namespace in find_exhausted(old) - find_exhausted(new):
            yield from first_in_line(namespace, change.name, objects)
        if not is_counted(old) and is_counted(new):
            yield from indexed_keys(objects, BY_STATE, OVER_BUDGET)
        return
    names = [change.name]
    if any(map(_is_default, change.states)):
        # Two defaults are a conflict of both, and objects without a profile depend on the default.
        names.append(DEFAULT_PROFILE)
        for profile in objects.computeprofiles().values():
            if profile.is_default and profile.name != change.name:
                yield Key(profile.kind, "", profile.name)
    for name in names:
        yield from indexed_keys(objects, BY_PROFILE, name)
    yield from indexed_keys(objects, BY_STATE, UNSETTLED)


def _text(profile: Manifest) -> tuple[object, ...]:
    metadata = profile["metadata"]
    return profile.get("spec"), metadata.get("annotations"), metadata.get("labels")


def _is_default(profile: Manifest) -> bool:
    metadata = profile["metadata"]
    return is_marked_default(metadata.get("annotations") or {}, metadata.get("labels") or {})


KIND: Final = KindRow(model=ComputeProfile, reconcile=reconcile, relations=_relations, needs_no_lists=is_live)
