# SPDX-License-Identifier: Apache-2.0
"""Fields of this release that installed definitions lack."""

from copy import deepcopy

import pytest

from finetune_operator.api.crd import KINDS, build_crd
from finetune_operator.runtime.definitions import _schema, find_missing

OURS = {kind.name: _schema(build_crd(kind)) for kind in KINDS}


def test_a_definition_of_this_release_lacks_nothing() -> None:
    for schema in OURS.values():
        assert list(find_missing(schema, schema)) == []


def test_missing_fields_and_values_are_named_by_their_paths() -> None:
    ours = OURS["FineTuneJob"]
    old = deepcopy(ours)
    del old["properties"]["status"]["properties"]["resolved"]["properties"]["trainerContract"]
    evaluation = old["properties"]["status"]["properties"]["evaluation"]
    evaluation["properties"]["verdict"]["enum"].remove("NoGates")

    assert sorted(find_missing(old, ours)) == [
        "status.evaluation.verdict=NoGates",
        "status.resolved.trainerContract",
    ]


def test_a_newer_definition_lacks_nothing() -> None:
    newer = deepcopy(OURS["Dataset"])
    newer["properties"]["spec"]["properties"]["news"] = {"type": "string"}
    newer["properties"]["spec"]["properties"]["onInvalidRows"]["enum"].append("Repair")
    assert list(find_missing(newer, OURS["Dataset"])) == []


@pytest.mark.parametrize("version", ["v1alpha1", "v1"])
def test_a_definition_without_our_version_lacks_everything(version: str) -> None:
    crd = build_crd(KINDS[0])
    crd["spec"]["versions"][0]["name"] = version
    assert bool(_schema(crd)) == (version == "v1alpha1")
