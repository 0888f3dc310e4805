# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the API, which `kubectl explain` prints."""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo

from finetune_operator.api.crd import build_crd, schema_of
from finetune_operator.api.kinds import KINDS
from finetune_operator.api.meta import Model, Reserved, ReservedValues


def _models(annotation: Any) -> Iterator[type[Model]]:
    """The API models of an annotation, and the models of their fields."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models(field.annotation)
    for argument in get_args(annotation):
        yield from _models(argument)


MODELS = {model for kind in KINDS for model in _models(kind.model)}
MARKED = [
    pytest.param(model, field, mark, id=f"{model.__name__}.{field.alias}")
    for model in sorted(MODELS, key=lambda model: model.__name__)
    for field in model.model_fields.values()
    for mark in field.metadata
    if isinstance(mark, Reserved | ReservedValues)
]


def _description(model: type[Model], field: FieldInfo) -> str:
    description: str = schema_of(model)["properties"][field.alias]["description"]
    return description


@pytest.mark.parametrize(("model", "field", "mark"), MARKED)
def test_the_description_of_what_is_reserved_says_so(
    model: type[Model], field: FieldInfo, mark: Reserved | ReservedValues
) -> None:
    description = _description(model, field)
    if isinstance(mark, Reserved):
        assert description.startswith("Not implemented in this release: ")
    else:
        values = ", ".join(sorted(mark.values))
        assert f" {values}: not implemented in this release" in description
    assert "NotImplemented" in description


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from _fields(child.get("items", child), f"{path}.{name}")


def _all_fields(part: str) -> list[Any]:
    schemas = (
        (kind.name, build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]) for kind in KINDS
    )
    return [
        pytest.param(field, id=path)
        for name, schema in schemas
        for path, field in _fields(schema["properties"][part], f"{name}.{part}")
    ]


@pytest.mark.parametrize("field", [*_all_fields("spec"), *_all_fields("status")])
def test_every_field_is_described_in_sentences(field: dict[str, Any]) -> None:
    assert re.fullmatch(r"\S.*[.]", field["description"])


@pytest.mark.parametrize("field", _all_fields("spec"))
def test_a_description_states_the_default_once(field: dict[str, Any]) -> None:
    default = field.get("default")
    assert field["description"].count("Default:") <= 1
    if isinstance(default, str | int | float) and default != "":
        text = default if isinstance(default, str) else json.dumps(default)
        assert field["description"].endswith(f" Default: {text}.")
