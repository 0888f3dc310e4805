# SPDX-License-Identifier: Apache-2.0
"""Advice about names: the nearest field for a typo, and what other software calls it.

The names of other software are those of docs/coming-from.md, from the table it is generated from.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from finetune_client.offline.definitions import SCHEMAS, Schema
from finetune_client.offline.findings import Path
from finetune_client.offline.schema import UnknownField, child_schema
from finetune_operator.api.foreign_names import FOREIGN_NAMES, ForeignName

_SIMILAR: Final = 0.6
_VERY_SIMILAR: Final = 0.85
_MADE_BY_USERS: Final = ("Dataset", "FineTuneJob", "InferenceDeployment", "Evaluation", "ComputeProfile")


def find_nearest(name: str, among: Iterable[str], similarity: float = _SIMILAR) -> str:
    """The most similar name, without regard to case and '_'; empty if none is similar."""
    by_form = {_form(each): each for each in among}
    found = get_close_matches(_form(name), by_form, n=1, cutoff=similarity)
    return by_form[found[0]] if found else ""


def _form(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A name of other software in the form in which it is looked up.

    Attributes:
        steps: names of the fields; the last one decides.
        value: the value that the name needs; empty for any.
    """

    software: str
    entry: ForeignName
    steps: tuple[str, ...]
    value: str

    @property
    def last_step(self) -> str:
        """The last step as the software writes it."""
        return self.entry.name.partition(":")[0].rpartition(".")[2]


@functools.cache
def _foreign_names() -> tuple[_Foreign, ...]:
    return tuple(
        _Foreign(software, entry, *_parse(entry.name))
        for software, entries in FOREIGN_NAMES.items()
        for entry in entries
    )


def _parse(name: str) -> tuple[tuple[str, ...], str]:
    """The steps and the value of a name, such as those of `datasets[].path`, `adapter: lora` or
    `weight (of a message)`.
    """
    if name.startswith("label "):
        return ("labels", _form(name.removeprefix("label "))), ""
    field, _, value = name.partition(": ")
    field = re.sub(r" \(.*\)$", "", field).rpartition(" ")[2].removeprefix("…/")
    return tuple(_form(step.removesuffix("[]")) for step in field.split(".")), value


def advise_foreign(kind: str, path: Path, value: Any, *, with_values: bool = False) -> str:
    """What to write instead of a field of other software; empty if no software has the name.

    Names are compared from the last step on, so that `lora_r` is found wherever it is. The names with most
    steps in common win, and of these the ones for this kind.

    Args:
        with_values: only names with this value, such as `method.type: dpo`: the field itself is known.
    """
    steps = [_form(step) for step in path if isinstance(step, str)]
    scores: dict[_Foreign, int] = {}
    for foreign in _foreign_names():
        common = _common_end(steps, foreign.steps)
        same_value = bool(foreign.value) and str(value).lower() == foreign.value
        # The last step alone decides if it is more than an everyday word.
        enough = common == len(foreign.steps) or (common and re.search("[a-z][_A-Z]", foreign.last_step))
        if enough and same_value >= (bool(foreign.value) or with_values):
            scores[foreign] = 4 * common + 2 * same_value + (foreign.entry.kind == kind)
    best = max(scores.values(), default=0)
    # Several programs have a name, and mean the same.
    meanings: dict[tuple[str, str], str] = {}
    for foreign, score in scores.items():
        entry = foreign.entry
        if score == best:
            meanings.setdefault((entry.path, entry.difference), f"{entry.advice} ({foreign.software})")
    return "; ".join(meanings.values())


def _common_end(steps: list[str], foreign: tuple[str, ...]) -> int:
    count = 0
    for one, other in zip(reversed(steps), reversed(foreign), strict=False):
        if one != other:
            break
        count += 1
    return count


def advise_unknown(kind: str, unknown: UnknownField) -> str:
    """What to write instead of an unknown field; empty if nothing is similar."""
    name = str(unknown.path[-1])
    same = next((each for each in unknown.siblings if _form(each) == _form(name)), "")
    elsewhere = " or ".join(_fields_named(kind, name)[:3])
    known = [
        _advise_nested(kind, unknown.path, unknown.value),
        f"write {same}" if same else "",
        f"{name} is {elsewhere}" if elsewhere and not same else "",
    ]
    if any(known):
        return "; ".join(text for text in known if text)
    nearest = find_nearest(name, unknown.siblings)
    other = next((each for each in _MADE_BY_USERS if len(_fields_named(each, name)) == 1), "")
    if other and not find_nearest(name, unknown.siblings, _VERY_SIMILAR):
        return f"{name} is {_fields_named(other, name)[0]} of a {other}"
    if nearest:
        return f"did you mean {nearest}?"
    similar = find_nearest(name, (path.rpartition(".")[2] for path in _field_paths(kind)), 0.75)
    if similar:
        return f"did you mean {' or '.join(_fields_named(kind, similar)[:3])}?"
    if 0 < len(unknown.siblings) <= 12:
        return f"the fields here are {', '.join(unknown.siblings)}"
    return ""


def _advise_nested(kind: str, path: Path, value: Any) -> str:
    """Advice about the foreign fields in a foreign field, or about itself."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = (_advise_nested(kind, (*path, key), child) for key, child in list(items)[:50])
    found = dict.fromkeys(text for text in inner if text)
    return "; ".join(found) or advise_foreign(kind, path, value)


def _fields_named(kind: str, name: str) -> list[str]:
    """Fields of a kind with this name."""
    return [path for path in _field_paths(kind) if _form(path.rpartition(".")[2]) == _form(name)]


@functools.cache
def _field_paths(kind: str) -> tuple[str, ...]:
    """Every field of the spec, without indexes."""
    return tuple(_walk(SCHEMAS[kind]["properties"]["spec"], "spec"))


def _walk(schema: Schema, path: str) -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _walk(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from _walk(schema["items"], path)


def advise_value(kind: str, path: Path, value: Any) -> str:
    """What to write instead of a value: the nearest one of an enum, or what other software means by it."""
    foreign = advise_foreign(kind, path, value, with_values=True)
    if foreign:
        return foreign
    schema: Schema = SCHEMAS[kind]
    for step in path:
        below = schema.get("items") if isinstance(step, int) else child_schema(schema, step)
        if not isinstance(below, dict):
            return ""
        schema = below
    if isinstance(value, str) and "enum" in schema:
        nearest = find_nearest(value, schema["enum"])
        return f"did you mean {nearest}?" if nearest else ""
    return ""


def recognize(fields: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """The software whose settings these are, with advice for each field; empty if it has less than three."""
    found: dict[str, dict[str, str]] = {}
    for foreign in _foreign_names():
        for name, value in fields.items():
            matches = _form(name) == foreign.steps[0] and (
                len(foreign.steps) == 1 or isinstance(value, dict | list)
            )
            if matches and (not foreign.value or str(value).lower() == foreign.value):
                found.setdefault(foreign.software, {}).setdefault(name, foreign.entry.advice)
    software = max(found, key=lambda each: len(found[each]), default="")
    return (software, found[software]) if software and len(found[software]) >= 3 else ("", {})
