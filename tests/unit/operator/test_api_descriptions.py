# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the API, which `kubectl explain` prints."""

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from finetune_operator.api.crd import KINDS, build_crd, build_schema
from finetune_operator.api.meta import Model, Reserved, ReservedValues


class Later(Model):
    """A model of a field and of values that no release implements yet."""

    sharpness: Annotated[int | None, Field(description="Sharpness of the edges."), Reserved()] = None
    colour: Annotated[
        Literal["Red", "Green"] | None, Field(description="Colour."), ReservedValues.of("Green")
    ] = None


def test_the_description_of_what_is_reserved_says_so() -> None:
    fields = build_schema(Later)["properties"]
    assert fields["sharpness"]["description"] == (
        "Not implemented in this release: setting it stalls the object with reason NotImplemented."
        " Sharpness of the edges."
    )
    assert fields["colour"]["description"] == (
        "Colour. Green: not implemented in this release, and refused with reason NotImplemented."
    )


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
