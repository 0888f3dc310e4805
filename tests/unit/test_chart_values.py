# SPDX-License-Identifier: Apache-2.0
"""The schema of the chart's values, as Helm checks it."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from hack.chart_page import chart_values

CHART = Path(__file__).parents[2] / "charts" / "finetune-operator"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())

FREE_FORM = {
    ("global",),
    *((name, "[]") for name in ("extraEnv", "extraVolumes", "extraVolumeMounts", "extraObjects")),
    ("monitors", "metricRelabelings", "[]"),
    *(("affinity", part) for part in ("nodeAffinity", "podAffinity", "podAntiAffinity")),
}
"""Kubernetes' own objects, which the API server validates."""


def objects(
    node: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    if "object" in node.get("type", ()):
        yield path, node
    for name, child in node.get("properties", {}).items():
        yield from objects(child, (*path, name))
    if "items" in node:
        yield from objects(node["items"], (*path, "[]"))


def errors(values: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft7Validator(SCHEMA).iter_errors(values)]


def test_the_schema_is_valid_and_accepts_the_default_values() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert errors(VALUES) == []


def test_every_object_of_the_schema_is_closed_or_a_map_of_scalars() -> None:
    open_objects = {
        path
        for path, node in objects(SCHEMA)
        if node.get("additionalProperties") is not False
        and not isinstance(node.get("additionalProperties"), dict)
    }
    assert open_objects == FREE_FORM


def test_the_schema_and_the_default_values_name_the_same_fields() -> None:
    assert set(SCHEMA["properties"]) == set(VALUES)


CLOSED = [
    path
    for path, node in objects(SCHEMA)
    if node.get("properties") and "[]" not in path and path not in FREE_FORM
]


@pytest.mark.parametrize("path", CLOSED, ids=lambda path: ".".join(path) or "top")
def test_a_misspelt_name_is_refused_by_its_name(path: tuple[str, ...]) -> None:
    values = copy.deepcopy(VALUES)
    place = values
    for name in path:
        place = place.setdefault(name, {})
    place["mispelt"] = "x"
    assert any("mispelt" in message for message in errors(values))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("replicas",), 0),
        (("replicas",), "1"),
        (("image", "pullPolicy"), "Sometimes"),
        (("imagePullSecrets",), [{"nam": "registry"}]),
        (("runner", "imagePullSecrets"), ["Not_A_Secret"]),
        (("fullnameOverride",), "Not_A_Name"),
        (("extraArgs",), ["-v"]),
        (("podSecurityContext", "runAsUser"), "root"),
        (("logLevel",), "info"),
        (("workers",), 0),
        (("leaseDurationSeconds",), 1),
        (("watchNamespaces",), ["Not_A_Namespace"]),
        (("watchNamespaces",), ["team-a", "team-a"]),
        (("image", "repository"), ""),
        (("image", "digest"), "1a2b"),
        (("trainerImage", "digest"), "sha256:1a2b"),
        (("resources", "limits"), {"memory": "lots"}),
        (("defaultProfile", "name"), "x" * 41),
        (("defaultProfile", "spec", "serving", "engine"), "vllm"),
        (("defaultProfile", "spec", "accelerator", "maxPerPod"), 0),
        (("defaultProfile", "spec", "store", "uri"), "artifacts"),
        (("defaultProfile", "spec", "cost"), {"pricePerDeviceHour": -1}),
    ],
    ids=str,
)
def test_a_value_that_would_not_work_is_refused(path: tuple[str, ...], value: object) -> None:
    values = copy.deepcopy(VALUES)
    place = values
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    assert errors(values)


def leaves(node: Any, path: str = "") -> Iterator[str]:
    if isinstance(node, dict) and node:
        for name, child in node.items():
            yield from leaves(child, f"{path}.{name}" if path else name)
    else:
        yield path


def test_the_readme_describes_every_value_or_the_group_that_it_belongs_to() -> None:
    found = {value.path: value for value in chart_values((CHART / "values.yaml").read_text())}
    for path in leaves(VALUES):
        parts = path.split(".")
        described = {".".join(parts[:end]) for end in range(len(parts), 0, -1)} & set(found)
        assert any(found[each].description for each in described), path
    assert found["image.tag"].default == '""'
    assert found["image.tag"].description == "Tag of the image. Empty: the chart's appVersion."
    assert found["defaultProfile.spec.accelerator.resource"].default == "nvidia.com/gpu"
