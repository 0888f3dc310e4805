# SPDX-License-Identifier: Apache-2.0
"""Limits of the grammars and regular expressions by which clients constrain answers."""

import re
from collections.abc import Mapping
from typing import Final

from finetune_trainer.serve.errors import RequestError

MAX_NESTING: Final = 1000
"""Compilers that have a stack of 8 MiB were ended by 2,400 and more, those of grammars by 5,000 rules."""
MAX_REPETITIONS: Final = 1_000_000
"""Of a part of a regular expression or of a rule, times those of the parts that contain it.

A rule counts as a part of those that refer to it. xgrammar took 0.6 s for 1,000 times 1,000, 53 s for 10,000
times 10,000, and 56 s for three rules with 10,000 each.
"""
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
    """Refuse a regular expression with too many repetitions. Raises RequestError."""
    if repetitions_of(regex) > MAX_REPETITIONS:
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


def _simplified(part: re.Match[str]) -> str:
    """A part of a grammar, with the repetitions that it contains."""
    if part["macro"]:
        regex = re.sub(r"\\(.)", r"\1", part["text"])
        return f"(@{{{repetitions_of(regex)}}}"
    if part["expression"]:
        return f"@{{{repetitions_of(part['expression'])}}}"
    if part["low"]:
        return f"{{{part['low']},{part['high'] or ''}}}"
    return " " if part[0].startswith(("#", "//")) else "@"


def _references(grammar: str, field: str) -> dict[str, dict[str, int]]:
    """How often each rule repeats each part: the name of a rule, or "" for all other parts."""
    rules: dict[str, dict[str, int]] = {"": {}}
    groups, last = [rules[""]], {"": 1}
    for part in _RULE_PARTS.finditer(grammar):
        if part["low"] is not None:
            times = _times(part["low"], part["high"])
            last = {name: min(number * times, MAX_REPETITIONS + 1) for name, number in last.items()}
            continue
        _include(groups[-1], last)
        last = {"": 1}
        if part["rule"]:
            groups = [rules.setdefault(_name(part["rule"]), {})]
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


def repetitions_of(regex: str) -> int:
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
            last *= _times(*part.groups())
            most = max(most, last)
        else:
            last = 1
    return most
