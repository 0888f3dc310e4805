"""What the API says about itself: whoever reads `kubectl explain` learns what is not implemented yet."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic.fields import FieldInfo

from finetune_operator.api.crd import schema_of
from finetune_operator.api.kinds import KINDS
from finetune_operator.api.meta import Model, Reserved, ReservedValues


def _models(annotation: Any) -> Iterator[type[Model]]:
    """The API models that an annotation mentions, and those that they mention."""
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
