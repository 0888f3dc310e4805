# SPDX-License-Identifier: Apache-2.0
"""Limits of the JSON Schemas, grammars and expressions by which clients constrain answers, for both engines.

Their compilers are recursive, follow each reference, and need more than linear time for some inputs. A stack
that overflows ends the process, and all requests in it. A long compilation holds up other requests.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_trainer.serve.errors import RequestError

MAX_NESTING: Final = 1000
"""Compilers that have a stack of 8 MiB were ended by 2,400 and more, those of grammars by 5,000 rules."""
MAX_CHARACTERS: Final = 128 * 1024
"""Of one field. The slowest input of this size that was tried, a regular expression, took xgrammar 8 s."""
MAX_PROPERTIES: Final = 500
"""Of one object, or of several whose squares have the same sum: the time grows with the square.

With 500 optional properties xgrammar took 0.7 s for 32,000 tokens and 1.6 s for 128,000; with 2,000, 20 s.
"""
MAX_REPETITIONS: Final = 1_000_000
"""Of a part of a regular expression or of a rule, times those of the parts that contain it.

xgrammar took 0.6 s for 1,000 times 1,000, and 53 s for 10,000 times 10,000.
"""
MAX_ITEMS: Final = 100_000
"""Of `minItems` and `maxItems`. llguidance took 12 s for a million, and no memory suffices for 2³¹."""
_MAX_DIGITS: Final = 12
_PARTS: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[()]|\{(\d*),?(\d*)\}|.", re.DOTALL)
"""Parts of a regular expression: escapes, character classes, parentheses, repetitions, characters."""
_GRAMMAR_PARTS: Final = re.compile(
    r"(?P<skipped>\s+|#[^\n]*|//[^\n]*)|\bRegex\(\s*\"(?P<macro>(?:\\.|[^\"\\])*)\"|/(?P<expression>(?:\\.|[^/\\\n])+)/"
    r"|(?P<text>\"(?:\\.|[^\"\\])*\")|(?P<class>\[(?:\\.|[^\]\\])*\])"
    r"|\{\s*(?P<low>\d*)\s*,?\s*(?P<high>\d*)\s*\}|~\s*(?P<first>\d+)(?:\s*\.\.\s*(?P<last>\d*))?",
    re.DOTALL,
)
"""Parts of a grammar whose form differs from that of a regular expression."""


@dataclass
class _Extent:
    """Extent of a schema, or of a value that contains schemas."""

    nesting: int = 0
    """The most levels through which a compiler can go: those of the JSON, once for each reference."""
    characters: int = 0
    """Characters of names, texts and numbers."""
    squares: int = 0
    """Sum of the squares of the numbers of properties."""
    repetitions: int = 0
    """The most repetitions of a part of a regular expression."""
    grammars: list[str] = field(default_factory=list)
    """Grammars in structural tags."""
    items: float = 0
    """The largest bound of a number of items."""

    def add_keywords(self, schema: Mapping[str, Any]) -> None:
        """Take the keywords of a schema into account."""
        expressions = (schema.get("pattern"), *_names(schema.get("patternProperties")))
        repetitions = [_repetitions(each) for each in expressions if isinstance(each, str)]
        bounds = (schema.get(name) for name in ("minItems", "maxItems"))
        if isinstance(grammar := schema.get("grammar"), str):
            self.grammars.append(grammar)
        self.squares += len(_names(schema.get("properties"))) ** 2
        self.repetitions = max([self.repetitions, *repetitions])
        self.items = max([self.items, *(each for each in bounds if isinstance(each, int | float))])


def check_schema(schema: object, field: str) -> None:
    """Refuse a schema, or a value that contains schemas or grammars, beyond a limit. Raises RequestError."""
    extent = _extent(schema)
    if extent.nesting > MAX_NESTING:
        raise unusable("it has too many references, or is nested too deeply", field)
    if extent.characters > MAX_CHARACTERS:
        raise unusable(f"it has more than {MAX_CHARACTERS} characters", field)
    if extent.squares > MAX_PROPERTIES**2:
        raise unusable(
            f"it has too many properties: one object may have {MAX_PROPERTIES}, and each of several fewer",
            field,
        )
    if extent.repetitions > MAX_REPETITIONS:
        raise unusable(f"a part of a pattern has more than {MAX_REPETITIONS} repetitions", field)
    if extent.items > MAX_ITEMS:
        raise unusable(f"minItems or maxItems is more than {MAX_ITEMS}", field)
    check_grammar("\n".join(extent.grammars), field)


def check_text(text: str, field: str) -> None:
    """Refuse a text that is too long. Raises RequestError."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError.invalid(
            f"{field}: it has more than {MAX_CHARACTERS} characters. Shorten it.", field
        )


def check_regex(regex: str, field: str) -> None:
    """Refuse a regular expression with too many repetitions. Raises RequestError."""
    if _repetitions(regex) > MAX_REPETITIONS:
        raise RequestError.invalid(
            f"{field}: a part of it has more than {MAX_REPETITIONS} repetitions. Allow fewer.", field
        )


def check_grammar(grammar: str, field: str) -> None:
    """Refuse a grammar, in Lark's form or EBNF, beyond a limit or with a schema. Raises RequestError."""
    if "%json" in grammar:
        raise RequestError.invalid(f"{field}: %json is not supported. Use structured_outputs.json.", field)
    # Each rule has a colon.
    if grammar.replace("::=", ":").count(":") > MAX_NESTING:
        raise RequestError.invalid(f"{field}: the grammar has more than {MAX_NESTING} rules.", field)
    check_regex(_GRAMMAR_PARTS.sub(_as_expression, grammar), field)


def _extent(schema: object) -> _Extent:
    extent, depth, references, waiting = _Extent(), 0, set[str](), [(schema, 1)]
    while waiting:
        value, level = waiting.pop()
        depth = max(depth, level)
        if isinstance(value, str | int | float):
            extent.characters += len(str(value))
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                references.add(reference)
            extent.add_keywords(value)
            extent.characters += sum(map(len, value))
            value = list(value.values())
        if isinstance(value, list):
            waiting += [(each, level + 1) for each in value]
    extent.nesting = depth * (len(references) + 1)
    return extent


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _as_expression(part: re.Match[str]) -> str:
    """A part of a grammar, as a regular expression with the same repetitions."""
    kind, text = part.lastgroup, part[0]
    if kind == "skipped":
        return ""
    if kind == "macro":
        # The parenthesis after the text closes it.
        return "(" + re.sub(r"\\(.)", r"\1", part["macro"])
    if kind == "expression":
        return f"({part['expression']})"
    if kind == "text":
        return "x"
    if kind == "class":
        return text
    low, high = part["low"] or part["first"], part["high"] or part["last"]
    return f"{{{low or ''},{high or ''}}}"


def _repetitions(regex: str) -> int:
    """The most repetitions of a part of a regular expression, times those of the parts that contain it."""
    outside: list[int] = []
    most = last = 1
    for part in _PARTS.finditer(regex):
        text = part[0]
        if text == "(":
            outside.append(most)
            most = last = 1
        elif text == ")":
            last, most = most, max(most, outside.pop() if outside else 1)
        elif text.startswith("{") and len(text) > 1:
            last *= max((int(number[:_MAX_DIGITS]) for number in part.groups() if number), default=1)
            most = max(most, last)
        else:
            last = 1
    return most


def unusable(why: str, field: str) -> RequestError:
    """The error of a request whose schema cannot be used."""
    return RequestError.invalid(
        f"The schema cannot be used: {why}. Simplify it, or remove what is not supported.", field
    )
