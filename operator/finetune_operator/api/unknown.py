"""What a newer release has written that this one does not know: it stays where it is."""

import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Union, get_args, get_origin

from finetune_operator.api.meta import Model

IDENTITIES: Final = ("name", "type", "digest", "stage", "step")
"""Fields by which an item of a list is known again, in the order in which they are tried."""


def keep_unknown(model: type[Model], live: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`new`, an object of the model's wire form, with what `live` has in fields that the model does not know.

    A part that `new` leaves out, or an item of a list that it has no more, does not come back.
    """
    aliases = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    kept = {key: value for key, value in live.items() if key not in aliases}
    for key, annotation in aliases.items():
        part = _model_in(annotation)
        if key in new:
            kept[key] = new[key] if part is None else _keep(part, live.get(key), new[key])
        elif part is annotation and part is not None:
            # Always there; left out, because nothing that is known is in it.
            left = keep_unknown(part, live.get(key) or {}, {})
            kept |= {key: left} if left else {}
    return kept


def _keep(model: type[Model], live: Any, new: Any) -> Any:
    if isinstance(new, dict) and isinstance(live, dict):
        return keep_unknown(model, live, new)
    if isinstance(new, list | tuple) and isinstance(live, list | tuple):
        return [keep_unknown(model, _same(item, live), item) for item in new]
    return new


def _same(item: Mapping[str, Any], among: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The item of the same identity, or one that has nothing."""
    key = next((name for name in IDENTITIES if name in item), None)
    return next((each for each in among if key is not None and each.get(key) == item[key]), {})


def _model_in(annotation: Any) -> type[Model] | None:
    """The model of a field that holds one, or a tuple of them; None for every other field."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    if get_origin(annotation) in {Annotated, Union, types.UnionType, tuple}:
        return next((found for arg in get_args(annotation) if (found := _model_in(arg)) is not None), None)
    return None
