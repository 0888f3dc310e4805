# SPDX-License-Identifier: Apache-2.0
"""Judge an object by the CEL rules of its definition, with the sentences of the API server.

Transition rules, which compare with the stored object, are left out. The library has no functions of
Kubernetes; the rules use few of them. A method is a function whose first argument is the receiver.
"""

import functools
import logging
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from finetune_client.offline.definitions import Schema
from finetune_client.offline.findings import Finding, Path, Severity
from finetune_client.offline.regex import is_match

# The package imports its command line, a third of the time of a call, which nothing here needs.
sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
import cel  # noqa: E402

TRANSITION: Final = "oldSelf"

# A function that fails, such as for a text that is not a quantity, is a finding, and not a line of a log too.
logging.getLogger("cel").setLevel(logging.CRITICAL)


def check_rules(schema: Schema, value: Any, path: Path = (), field: str = "") -> Iterator[Finding]:
    """Rules that a completed value breaks, in the order of the API server.

    Args:
        schema: the schema of the value.
        path: path of the value.
        field: its name as the API server writes it in refusals by rules.
    """
    rules = [rule for rule in schema.get("x-kubernetes-validations", ()) if TRANSITION not in rule["rule"]]
    typed = _typed(schema, value) if rules else None
    for rule in rules:
        below, sentence = rule.get("fieldPath", ""), rule["message"]
        try:
            holds = _compile(rule["rule"]).execute(cel.Context({"self": typed}, FUNCTIONS))
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            # Such as an index out of bounds, or a text without a quantity: the API server names the object.
            holds, below, sentence = False, "", f"{error} evaluating rule: {sentence}"
        if holds is not True:
            steps = tuple(step for step in below.split(".") if step)
            yield Finding(Severity.ERROR, (*path, *steps), f"{field}{below}".removeprefix("."), sentence)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from check_rules(schema.get("items", {}), item, (*path, index), f"{field}[{index}]")
    elif isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        for name, child in value.items():
            if name in properties:
                yield from check_rules(properties[name], child, (*path, name), _join(field, name))
            elif isinstance(extra, dict):
                yield from check_rules(extra, child, (*path, name), f"{field}[{name}]")


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name


@functools.cache
def _compile(rule: str) -> cel.Program:
    # The library's own `matches` cannot be replaced, and its \s has blanks outside of ASCII.
    return cel.compile(rule.replace(".matches(", ".matchesAsGo("))


def _typed(schema: Schema, value: Any) -> Any:
    """The value with the types of its schema: a number is a double, even without a fraction."""
    if isinstance(value, list):
        return [_typed(schema.get("items", {}), item) for item in value]
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties")
        below = extra if isinstance(extra, dict) else {}
        return {name: _typed(properties.get(name, below), child) for name, child in value.items()}
    if schema.get("type") == "number" and isinstance(value, int):
        return float(value)
    if schema.get("type") == "integer" and isinstance(value, float):
        return int(value)
    return value


_UNITS: Final = {
    "": Decimal(1),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("n", "u", "m"), start=-3)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), start=1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)},
}


def _quantity(text: str) -> float:
    unit = text.lstrip("+-.0123456789")
    number, scale = (text, "") if unit[:1] in {"e", "E"} and unit != "E" else (text.removesuffix(unit), unit)
    try:
        return float(Decimal(number) * _UNITS[scale])
    except (InvalidOperation, KeyError) as error:
        raise ValueError(f"{text} is not a quantity") from error


_HOST: Final = re.compile(r"""[-A-Za-z0-9._~!$&'()*+,;=:\[\]<>"@%\u0080-\U0010ffff]*""")


def _url(text: str) -> str:
    """The text, an absolute URL or path.

    Raises:
        ValueError: Go's url.ParseRequestURI refuses it.
    """
    parts = urlsplit(text)
    port = _port(text)
    if (
        not (parts.scheme or text.startswith("/"))
        or any(ord(each) < 0x20 or ord(each) == 0x7F for each in text)
        or not _HOST.fullmatch(parts.netloc)
        or re.search(r"%(?![0-9A-Fa-f]{2})", parts.netloc + parts.path)
        or (port and not (port.isascii() and port.isdigit()))
    ):
        raise ValueError(f"{text} is not a URL")
    return text


def _port(text: str) -> str:
    after_address = urlsplit(text).netloc.rpartition("@")[2].rpartition("]")[2]
    return after_address.rpartition(":")[2] if ":" in after_address else ""


def _is_url(text: str) -> bool:
    try:
        _url(text)
    except ValueError:
        return False
    return True


def _substring(text: str, start: int, end: int | None = None) -> str:
    last = len(text) if end is None else end
    if not 0 <= start <= last <= len(text):
        raise ValueError("index out of range")
    return text[start:last]


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "matchesAsGo": is_match,
    "replace": lambda text, old, new: text.replace(old, new),
    "substring": _substring,
    "quantity": _quantity,
    "isLessThan": lambda one, other: one < other,
    "isGreaterThan": lambda one, other: one > other,
    "isURL": _is_url,
    "url": _url,
    "getPort": _port,
}
"""The functions that the rules use in addition to those of the library."""
