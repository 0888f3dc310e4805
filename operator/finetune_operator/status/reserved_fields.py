# SPDX-License-Identifier: Apache-2.0
"""Fields and values of a spec that this release validates but does not implement.

Each of them stalls its object with a message that names it, so none is silently ignored.
"""

from collections.abc import Iterator
from typing import Any, get_args

from pydantic.fields import FieldInfo

from finetune_operator.api.meta import Model, Reserved, ReservedValues


def find_unimplemented(spec: Model) -> tuple[str, ...]:
    """One message per reserved field or value in the spec; empty if there is none."""
    return tuple(_walk(spec, "spec"))


def _walk(model: Model, path: str) -> Iterator[str]:
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        here = f"{path}.{field.alias or name}"
        yield from _check_marks(field, value, here)
        if isinstance(value, Model):
            yield from _walk(value, here)
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, Model):
                    yield from _walk(item, f"{here}[{index}]")


def _check_marks(field: FieldInfo, value: Any, path: str) -> Iterator[str]:
    for mark in field.metadata:
        # False requests nothing, so it needs no implementation.
        if isinstance(mark, Reserved) and value is not None and value is not False:
            yield f"{path} is not implemented in this release; remove it"
        elif isinstance(mark, ReservedValues):
            used = value if isinstance(value, tuple) else (value,)
            for item in used:
                if item in mark.values:
                    others = [other for other in _choices(field.annotation) if other not in mark.values]
                    advice = f"use {' or '.join(others)}" if others else "remove it"
                    yield f"{path}: {item} is not implemented in this release; {advice}"


def _choices(annotation: Any) -> Iterator[str]:
    """The strings of a Literal, also within a tuple or optional type."""
    for argument in get_args(annotation):
        if isinstance(argument, str):
            yield argument
        elif argument is not Ellipsis:
            yield from _choices(argument)
