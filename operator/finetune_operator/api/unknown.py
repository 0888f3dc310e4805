# SPDX-License-Identifier: Apache-2.0
"""Keep the fields and values that a newer release has written and this one does not know."""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from finetune_operator.api.meta import Model

IDENTITIES: Final = (
    ("name",),
    ("type",),
    ("digest",),
    ("stage",),
    ("step",),
    ("namespace",),
    ("pod",),
    ("cause",),
    ("checkpoint", "reason"),
    ("reason",),
)
"""Required fields that identify an item of a list, in the order in which they are tried."""


def keep_unknown(model: type[Model], live: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return `new`, in the wire form of the model, with the fields of `live` that the model does not know.

    A part or a list item that `new` leaves out is not restored.
    """
    aliases = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    kept = {key: value for key, value in live.items() if key not in aliases}
    for key, annotation in aliases.items():
        part = _model_in(annotation)
        if key in new:
            kept[key] = new[key] if part is None else _keep(part, live.get(key), new[key])
        elif part is annotation and part is not None:
            # A part that is always present; `new` leaves it out because all its known fields are absent.
            left = keep_unknown(part, live.get(key) or {}, {})
            kept |= {key: left} if left else {}
    return kept


def _keep(model: type[Model], live: Any, new: Any) -> Any:
    if isinstance(new, dict) and isinstance(live, dict):
        return keep_unknown(model, live, new)
    if isinstance(new, list | tuple) and isinstance(live, list | tuple):
        identity = identity_of(model)
        return [keep_unknown(model, _find_same_item(identity, item, live), item) for item in new]
    return new


def identity_of(model: type[Model]) -> tuple[str, ...]:
    """Fields that identify an item in a list of this model; empty if a list is always written as a whole."""
    required = {name for name, field in model.model_fields.items() if field.is_required()}
    return next((names for names in IDENTITIES if required.issuperset(names)), ())


def _find_same_item(
    identity: tuple[str, ...], item: Mapping[str, Any], among: Iterable[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The item of the same identity, or an empty one."""
    if not identity:
        return {}
    return next((each for each in among if all(each.get(name) == item.get(name) for name in identity)), {})


def _model_in(annotation: Any) -> type[Model] | None:
    """The model of a field that holds one, or a tuple of them; None for every other field."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    if get_origin(annotation) in {Annotated, Union, types.UnionType, tuple}:
        return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
    return None
