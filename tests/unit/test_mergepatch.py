# SPDX-License-Identifier: Apache-2.0
"""Merge patches for lists of named items: a patch makes exactly the value that it was computed from."""

from typing import Any

import pytest

from tests.mergepatch import difference, is_same, merged

READY = {"type": "Ready", "status": "True"}
STALLED = {"type": "Stalled", "status": "False"}


def created(kind: str, name: str) -> dict[str, Any]:
    return {"manifest": {"kind": kind, "metadata": {"name": name}}}


@pytest.mark.parametrize(
    ("base", "target", "patch"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, {"b": None}),
        ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
        ({"a": {"b": 1}}, {"a": "text"}, {"a": "text"}),
        ([READY, STALLED], [READY | {"status": "False"}, STALLED], {"Ready": {"status": "False"}}),
        ([READY, STALLED], [STALLED], {"Ready": None}),
        ([READY], [READY, STALLED], {"Stalled": STALLED}),
        ([READY], [STALLED, READY], [STALLED, READY]),
        ([READY], [READY, READY], [READY, READY]),
        ([READY], ["Ready"], ["Ready"]),
        (["a"], ["a", "b"], ["a", "b"]),
        ([], [READY], [READY]),
        ([created("Job", "a")], [created("Job", "b")], {"Job": {"manifest": {"metadata": {"name": "b"}}}}),
        (
            [created("Job", "a"), created("Job", "b")],
            [created("Job", "a")],
            {"b": None},
        ),
    ],
)
def test_a_difference_is_the_shortest_patch_and_makes_the_target(base: Any, target: Any, patch: Any) -> None:
    assert is_same(difference(base, target), patch)
    assert is_same(merged(base, patch, by_name=True), target)


def test_a_mapping_for_a_list_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="have no names"):
        merged({"args": ["a"]}, {"args": {"a": None}}, by_name=True)
    with pytest.raises(ValueError, match="have no names"):
        merged([READY, READY], {"Ready": None}, by_name=True)


def test_without_names_a_mapping_replaces_a_list_as_in_the_standard() -> None:
    assert merged([READY], {"Ready": {"status": "False"}}) == {"Ready": {"status": "False"}}
