# SPDX-License-Identifier: Apache-2.0
"""The generated definitions are current and bounded, and the API server accepts them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from finetune_operator.api.crd import KINDS, Kind, build_crd, build_schema
from hack.generate import ROOT, generated

by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
FILES = generated()
BOUNDS = {"string": "maxLength", "array": "maxItems"}


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from _nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from _nodes(schema[key], f"{path}[*]")


def _root(kind: Kind) -> dict[str, Any]:
    schema: dict[str, Any] = build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_generated_file_is_what_the_models_generate(path: Path) -> None:
    assert path.read_text() == FILES[path], "run `make generate`"


@by_kind
def test_helm_flux_and_argo_cd_never_delete_a_definition(kind: Kind) -> None:
    assert build_crd(kind)["metadata"]["annotations"] == {
        "helm.sh/resource-policy": "keep",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
        "argocd.argoproj.io/sync-options": "Prune=false",
    }


@by_kind
def test_every_value_has_a_type_and_a_bound(kind: Kind) -> None:
    schema = _root(kind)["properties"]
    for path, node in (*_nodes(schema["spec"], "spec"), *_nodes(schema["status"], "status")):
        if "x-kubernetes-int-or-string" in node:
            continue
        assert "type" in node, path
        if node["type"] in BOUNDS and "enum" not in node and node.get("format") != "date-time":
            assert BOUNDS[node["type"]] in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


@by_kind
def test_no_rule_compares_a_whole_object_with_its_old_self(kind: Kind) -> None:
    for path, node in _nodes(_root(kind)):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["rule"] != "self == oldSelf", path


@by_kind
def test_a_rule_points_at_a_field_that_exists(kind: Kind) -> None:
    for path, node in _nodes(_root(kind)):
        for rule in node.get("x-kubernetes-validations", []):
            if "fieldPath" in rule:
                target = node
                for name in rule["fieldPath"].removeprefix(".").split("."):
                    assert name in target["properties"], path
                    target = target["properties"][name]


def test_a_union_is_refused_when_definitions_are_generated() -> None:
    class Epochs(BaseModel):
        epochs: int | str

    with pytest.raises(TypeError, match="a union cannot be expressed in a CRD"):
        build_schema(Epochs)


def test_an_exclusive_bound_keeps_its_meaning() -> None:
    jobs = next(kind for kind in KINDS if kind.name == "FineTuneJob")
    spec = _root(jobs)["properties"]["spec"]["properties"]
    rate = spec["hyperparameters"]["properties"]["learningRate"]
    assert (rate["minimum"], rate["exclusiveMinimum"]) == (0, True)


def test_a_bound_with_a_fraction_is_a_rule_because_the_api_server_cuts_the_fraction_off() -> None:
    class Gate(BaseModel):
        quantile: Annotated[float | None, Field(ge=0.5, le=0.99, description="Quantile.")] = None
        confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
        share: Annotated[float, Field(ge=0, lt=1)] = 0

    properties = build_schema(Gate)["properties"]
    assert properties["quantile"] == {
        "type": "number",
        "description": "Quantile. At least 0.5 and at most 0.99.",
        "x-kubernetes-validations": [
            {
                "rule": "self >= 0.5 && self <= 0.99",
                "message": "quantile must be at least 0.5 and at most 0.99",
            }
        ],
    }
    assert properties["confidence"]["x-kubernetes-validations"] == [
        {"rule": "self > 0.5 && self < 1.0", "message": "confidence must be above 0.5 and below 1"}
    ]
    assert (properties["share"]["minimum"], properties["share"]["maximum"]) == (0, 1)
