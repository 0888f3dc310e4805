# SPDX-License-Identifier: Apache-2.0
"""Limits of the schemas, grammars, expressions and texts by which clients constrain answers.

Both engines apply them. The compilers of constraints are recursive, follow each reference, and need more than
linear time for some inputs. A stack that overflows ends the process, and all requests in it. A long
compilation holds up other requests.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_trainer.serve.errors import RequestError

MAX_NESTING: Final = 1000
"""With a stack of 8 MiB, compilers crashed from 2,400 nested levels or 5,000 rules of a grammar on."""
MAX_REPETITIONS: Final = 1_000_000
"""Of a part of a regular expression or of a rule, times those of the parts that contain it.

A rule counts as a part of those that refer to it. xgrammar took 0.6 s for 1,000 times 1,000, 53 s for 10,000
times 10,000, and 56 s for three rules with 10,000 each.
"""
MAX_BRANCHES: Final = 200
"""Alternatives and optional or repeated parts (`|`, `?`, `*`, `+`) of a regular expression or a rule.

xgrammar compiled 200 optional parts in 2.5 s and 500 in 19 s: the time grows with the third power. With a
repeated choice of 100 alternatives, each token of the answer took 3 ms, with 500 0.15 s, and with 1,000 1 s.
No other request gets a token in this time.
"""
MAX_ALL_BRANCHES: Final = 500
"""Of all rules of a grammar, or of all regular expressions of a schema."""
MAX_STEPS: Final = 1_000_000
"""Of counting the repetitions of a grammar: how often a part is compared with another one."""
BRANCHES: Final = frozenset("|?*+")
_MAX_DIGITS: Final = 12
_PARTS: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*+\]?|[()]|\{(\d*+),?(\d*+)\}|.", re.DOTALL)
"""Parts of a regular expression: escapes, character classes, parentheses, repetitions, characters.

These patterns take linear time: possessive quantifiers, and a part that is not closed extends to the end.
"""
_GRAMMAR_PARTS: Final = re.compile(
    r"(?:#|//)[^\n]*+|(?P<macro>\bRegex\(\s*+)?\"(?P<text>(?:\\.|[^\"\\])*+)\"?"
    r"|/(?P<expression>(?:\\.|[^/\\\n])++)/?|\[(?:\\.|[^\]\\])*+\]?"
    r"|~\s*+(?P<low>\d++)(?:\s*+\.\.\s*+(?P<high>\d*+))?",
    re.DOTALL,
)
"""Comments, texts, expressions and classes of a grammar, and repetitions in Lark's form."""
_RULE_PARTS: Final = re.compile(
    r"(?P<rule>[\w.-]++)\s*+(?:@\s*+)?(?:::=|:)|(?P<name>[\w.-]++)|[()]"
    r"|\{\s*+(?P<low>\d*+)\s*+,?\s*+(?P<high>\d*+)\s*+\}|\S"
)
"""Parts of a grammar in which `@` replaces texts and classes."""


def check_regex(regex: str, field: str) -> None:
    """Refuse a regular expression with too many branches or repetitions. Raises RequestError."""
    if count_branches(regex) > MAX_BRANCHES:
        raise make_branches_error("the regular expression", MAX_BRANCHES, field)
    if count_repetitions(regex) > MAX_REPETITIONS:
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
    rules = _references(_GRAMMAR_PARTS.sub(_simplified, grammar), field)
    if max(_totals(rules).values()) > MAX_REPETITIONS:
        raise RequestError.invalid(
            f"{field}: a part of the grammar has more than {MAX_REPETITIONS} repetitions, times those of the"
            " parts and rules that contain it. Allow fewer.",
            field,
        )


def make_branches_error(of: str, limit: int, field: str) -> RequestError:
    """The error of a constraint with too many alternatives and repeated parts."""
    return RequestError.invalid(
        f"{field}: {of} has more than {limit} of the signs | ? * +. Use structured_outputs.choice for a"
        " list of texts, or split the constraint into several requests.",
        field,
    )


def _simplified(part: re.Match[str]) -> str:
    """A part of a grammar, with the repetitions and branches that it contains."""
    if part["macro"]:
        return "(" + _summary(re.sub(r"\\(.)", r"\1", part["text"]))
    if part["expression"]:
        return _summary(part["expression"])
    if part["low"]:
        return f"{{{part['low']},{part['high'] or ''}}}"
    return " " if part[0].startswith(("#", "//")) else "@"


def _summary(regex: str) -> str:
    return f"@{{{count_repetitions(regex)}}}" + "|" * min(count_branches(regex), MAX_BRANCHES + 1)


def _references(grammar: str, field: str) -> dict[str, dict[str, int]]:
    """How often each rule repeats each part: the name of a rule, or "" for all other parts."""
    rules: dict[str, dict[str, int]] = {"": {}}
    groups, last = [rules[""]], {"": 1}
    branches = all_branches = steps = 0
    for part in _RULE_PARTS.finditer(grammar):
        steps += len(last)
        if steps > MAX_STEPS:
            raise RequestError.invalid(f"{field}: the grammar is too complex. Simplify it.", field)
        if part[0] in BRANCHES:
            branches, all_branches = branches + 1, all_branches + 1
            if branches > MAX_BRANCHES:
                raise make_branches_error("a rule of the grammar", MAX_BRANCHES, field)
            if all_branches > MAX_ALL_BRANCHES:
                raise make_branches_error("the grammar", MAX_ALL_BRANCHES, field)
        if part["low"] is not None:
            times = _times(part["low"], part["high"])
            last = {name: min(number * times, MAX_REPETITIONS + 1) for name, number in last.items()}
            continue
        _include(groups[-1], last)
        last = {"": 1}
        if part["rule"]:
            groups, branches = [rules.setdefault(_name(part["rule"]), {})], 0
        elif part["name"]:
            last = {_name(part["name"]): 1}
        elif part[0] == "(":
            groups.append({})
        elif part[0] == ")" and len(groups) > 1:
            last = groups.pop()
        if len(groups) > MAX_NESTING:
            raise RequestError.invalid(f"{field}: the grammar is nested too deeply. Simplify it.", field)
    _include(groups[-1], last)
    return {
        name: {each: parts[each] for each in parts if not each or each in rules}
        for name, parts in rules.items()
    }


def _totals(rules: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The most repetitions of a part of each rule, with those of the rules that it refers to.

    A rule that contains itself counts once.
    """
    totals: dict[str, int] = {}
    done = {""}
    for start in rules:
        waiting = [start]
        while waiting:
            name = waiting[-1]
            if name not in totals:
                totals[name] = 1
                waiting += [each for each in rules[name] if each not in totals]
                continue
            waiting.pop()
            if name not in done:
                done.add(name)
                found = (number * totals[each] for each, number in rules[name].items())
                totals[name] = min(max(found, default=1), MAX_REPETITIONS + 1)
    return totals


def _include(group: dict[str, int], part: Mapping[str, int]) -> None:
    for name, number in part.items():
        group[name] = max(number, group.get(name, 1))


def _name(text: str) -> str:
    """The name of a rule without its priority."""
    return re.sub(r"\.\d+$", "", text)


def _times(*numbers: str | None) -> int:
    return max((int(number[:_MAX_DIGITS]) for number in numbers if number), default=1)


def count_branches(regex: str) -> int:
    """Number of alternatives and optional or repeated parts of a regular expression."""
    found, before = 0, ""
    for part in _PARTS.finditer(regex):
        # `(?` begins a group.
        found += part[0] in BRANCHES and before + part[0] != "(?"
        before = part[0]
    return found


def count_repetitions(regex: str) -> int:
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
            last = min(last * _times(*part.groups()), MAX_REPETITIONS + 1)
            most = max(most, last)
        else:
            last = 1
    return most


MAX_VALUES: Final = 20_000
"""Objects, lists, texts, numbers and other values at all levels: of a schema, and of all fields of a request
except a prompt of token ids. Large schemas have some hundred.

A walk stops there, so the work for a body depends on this number and not on its size.
"""
MAX_CHARACTERS: Final = 128 * 1024
"""Of one field. The slowest input of this size that was tried, a regular expression, took xgrammar 8 s."""
MAX_PROPERTIES: Final = 500
"""Of one object, or of several whose squares have the same sum: the time grows with the square.

With 500 optional properties xgrammar took 0.7 s for 32,000 tokens and 1.6 s for 128,000; with 2,000, 20 s.
"""
MAX_COUNTED_PROPERTIES: Final = 100
"""Of an object with `minProperties` or `maxProperties`: the time grows with the third power.

With 100 properties xgrammar took 0.7 s for 32,000 tokens, with 200 more than 5 s.
"""
MAX_ITEMS: Final = 100_000
"""Of `minItems` and `maxItems`. llguidance took 12 s for a million, and no memory suffices for 2³¹."""


@dataclass
class _Extent:
    """Extent of a schema, or of a value that contains schemas."""

    nesting: int = 0
    """The most levels through which a compiler can go: those of the JSON, once for each reference."""
    squares: int = 0
    """Sum of the squares of the numbers of properties, which have more weight if an object limits them."""
    expressions: list[str] = field(default_factory=list)
    """Regular expressions."""
    grammars: list[str] = field(default_factory=list)
    """Grammars in structural tags."""
    items: float = 0
    """The largest bound of a number of items."""

    def add_keywords(self, schema: Mapping[str, Any]) -> None:
        """Take the keywords of a schema into account."""
        expressions = (schema.get("pattern"), *_names(schema.get("patternProperties")))
        self.expressions += [each for each in expressions if isinstance(each, str)]
        bounds = (schema.get(name) for name in ("minItems", "maxItems"))
        if isinstance(grammar := schema.get("grammar"), str):
            self.grammars.append(grammar)
        is_counted = schema.get("minProperties") or "maxProperties" in schema
        weight = MAX_PROPERTIES // MAX_COUNTED_PROPERTIES if is_counted else 1
        self.squares += (len(_names(schema.get("properties"))) * weight) ** 2
        self.items = max([self.items, *(each for each in bounds if isinstance(each, int | float))])


def check_schema(schema: object, field: str) -> None:
    """Refuse a schema, or a value that contains schemas or grammars, beyond a limit. Raises RequestError."""
    extent = _extent(schema, field)
    if extent.nesting > MAX_NESTING:
        raise make_schema_error("it has too many references, or is nested too deeply", field)
    if extent.squares > MAX_PROPERTIES**2:
        raise make_schema_error(
            f"it has too many properties: one object may have {MAX_PROPERTIES}, or {MAX_COUNTED_PROPERTIES}"
            " with minProperties or maxProperties, and each of several fewer",
            field,
        )
    if any(count_repetitions(each) > MAX_REPETITIONS for each in extent.expressions):
        raise make_schema_error(f"a part of a pattern has more than {MAX_REPETITIONS} repetitions", field)
    branches = [count_branches(each) for each in extent.expressions]
    if max(branches, default=0) > MAX_BRANCHES:
        raise make_branches_error("a pattern", MAX_BRANCHES, field)
    if sum(branches) > MAX_ALL_BRANCHES:
        raise make_branches_error("the sum of its patterns", MAX_ALL_BRANCHES, field)
    if extent.items > MAX_ITEMS:
        raise make_schema_error(f"minItems or maxItems is more than {MAX_ITEMS}", field)
    for grammar in extent.grammars:
        check_grammar(grammar, field)


def check_text(text: str, field: str) -> None:
    """Refuse a text that is too long. Raises RequestError."""
    if len(text) > MAX_CHARACTERS:
        raise RequestError.invalid(
            f"{field}: it has more than {MAX_CHARACTERS} characters. Shorten it.", field
        )


def walk_values(value: object, field: str) -> Iterator[tuple[object, int]]:
    """Each value in a value of JSON, itself included, with its level from 1.

    A container comes before its values. Raises RequestError, before a container that is beyond MAX_VALUES.
    """
    found, waiting = 1, [(value, 1)]
    while waiting:
        value, level = waiting.pop()
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        found += len(values)
        if found > MAX_VALUES:
            raise make_size_error(field)
        waiting += [(each, level + 1) for each in values]
        yield value, level


def make_size_error(field: str) -> RequestError:
    """The error of a body whose fields up to this one have too many values."""
    return RequestError.invalid(
        f"{field}: this field, or it and those before it, have more than {MAX_VALUES} values. Send fewer.",
        field,
    )


def _extent(schema: object, field: str) -> _Extent:
    """Raises RequestError if it has too many values or characters."""
    extent, depth, references, characters = _Extent(), 0, set[str](), 0
    for value, level in walk_values(schema, field):
        depth = max(depth, level)
        if isinstance(value, str | int | float):
            characters += len(str(value))
        if isinstance(value, dict):
            characters += sum(map(len, value))
        if characters > MAX_CHARACTERS:
            raise make_schema_error(f"it has more than {MAX_CHARACTERS} characters", field)
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                references.add(reference)
            extent.add_keywords(value)
    extent.nesting = depth * (len(references) + 1)
    return extent


def _names(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def make_schema_error(why: str, field: str) -> RequestError:
    """The error of a request whose schema cannot be used."""
    return RequestError.invalid(
        f"The schema cannot be used: {why}. Simplify it, or remove what is not supported.", field
    )
