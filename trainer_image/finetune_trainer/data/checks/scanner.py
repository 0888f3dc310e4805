# SPDX-License-Identifier: Apache-2.0
"""Scans all texts of a row for sensitive text, and redacts it as the recipe specifies.

Control sequences of chat templates are reported because a tokenizer reads them as marks of turns, not as
text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Checks, Columns
from finetune_trainer.contract.vocabulary import Finding
from finetune_trainer.data.checks.detector import DetectedSpan, Detector, Expressions, Prefilter
from finetune_trainer.data.checks.personal_data import EmailAddresses, Ibans, PaymentCards, PhoneNumbers
from finetune_trainer.data.checks.secrets import Secrets
from finetune_trainer.data.row_problems import QUOTED, Code, Issue, Severity, field_name, mark_quoted
from finetune_trainer.rows import Row

SEQUENCES: Final = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|system|user|assistant|end|start|return|channel|message|call)\|>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|\[/?(?:TOOL_CALLS|AVAILABLE_TOOLS)\]"
)
"""Control sequences of ChatML (Qwen), Llama, Phi, Gemma, Mistral and gpt-oss, as in their tokenizers."""
EXPRESSIONS: Final[Expressions] = ((SEQUENCES.pattern,),)


def sequence_issue(text: str, column: str) -> Issue | None:
    """A warning about the first control sequence in a text."""
    found = SEQUENCES.search(text)
    if found is None:
        return None
    return Issue(
        Code.CONTROL_SEQUENCE,
        f"{column} has {found[0]}, which a model reads as the end or beginning of a turn,"
        f" at character {found.start() + 1}",
        "text without control sequences",
        "remove it, or write the turns as messages",
        column=QUOTED.sub(r"\1", column),
        severity="warning",
    )


ROLES: Final = Columns()
"""Columns with the names of their roles."""
STRICTEST: Final[tuple[Finding, ...]] = ("Fail", "Redact", "Warn")


@dataclass(frozen=True, slots=True)
class _Hit:
    detector: Detector
    finding: Finding
    found: DetectedSpan


class Scanner:
    """Runs the checks that are not off."""

    def __init__(self, checks: Checks) -> None:
        checked: list[tuple[Detector, Finding]] = [
            (Secrets(), checks.secrets),
            (EmailAddresses(), checks.email_addresses),
            (PaymentCards(), checks.payment_cards),
            (Ibans(), checks.ibans),
            (PhoneNumbers(checks.phone_region), checks.phone_numbers),
        ]
        self._enabled = [(detector, finding) for detector, finding in checked if finding != "Off"]
        self._prefilter = Prefilter([*(detector.expressions for detector, _ in self._enabled), EXPRESSIONS])

    def scan(self, row: Row, names: Columns = ROLES) -> tuple[Row, tuple[Issue, ...]]:
        """The row with placeholders for redacted text, and an issue per finding.

        `names` are the columns of the source, which the issues name.

        Of overlapping findings one counts: the one with the strictest setting, then the longest. Characters
        count from 1 in the original row. Returns the same row object if nothing changes.
        """
        texts, calls = [], {}
        for number, message in enumerate(row.messages):
            texts.append(message.content)
            if message.tool_calls is not None:
                calls[number] = json.loads(message.tool_calls)
        if row.rejected is not None:
            texts.append(row.rejected)
        columns = [value for _, value in row.columns]
        everything = "\n".join([*texts, *columns, *strings_in(list(calls.values()))])
        candidates = self._prefilter.find(everything)
        if not candidates:
            # Nearly all rows end here.
            return row, ()
        suspects = [
            each
            for number, each in enumerate(self._enabled)
            if number in candidates and each[0].may_find(everything)
        ]
        issues: list[Issue] = []
        if SEQUENCES.search(everything):
            found = (sequence_issue(text, _column(row, number, names)) for number, text in enumerate(texts))
            issues += (issue for issue in found if issue is not None)
        if not suspects:
            return row, tuple(issues)

        def redact(text: str, column: str) -> str:
            hits = _hits(text, suspects)
            issues.extend(_issue(hit, column) for hit in hits)
            return _redact(text, hits)

        texts = [redact(text, _column(row, number, names)) for number, text in enumerate(texts)]
        for number, call in calls.items():
            calls[number] = _rewritten(
                call, f"{_name(names.messages, 'messages')}[{number}].tool_calls", redact
            )
        kept = tuple((name, redact(value, field_name(name))) for name, value in row.columns)
        return _with_texts(row, texts, calls, kept), tuple(issues)

    def masked(self, text: str) -> str:
        """The text with placeholders for all findings, whatever their settings."""
        candidates = self._prefilter.find(text)
        suspects = [each for number, each in enumerate(self._enabled) if number in candidates]
        hits = [replace(hit, finding="Redact") for hit in _hits(text, suspects)]
        return _redact(text, hits)

    def masked_json(self, value: Any) -> Any:
        """The JSON value with all its texts as `masked` returns them; names of fields stay."""
        return _rewritten(value, "", lambda text, _: self.masked(text))

    def values_of(self, row: Row) -> set[str]:
        """The findings in all texts of a row, in the form of `values_in`."""
        calls = (json.loads(message.tool_calls) for message in row.messages if message.tool_calls is not None)
        texts = [*(message.content for message in row.messages), *strings_in(list(calls))]
        return set().union(*map(self.values_in, texts))

    def values_in(self, text: str) -> set[str]:
        """The findings in a text. Values that differ only in how they are written are equal."""
        return {
            _normal_form(hit.detector.code, text[hit.found.start : hit.found.end])
            for hit in _hits(text, self._enabled)
        }


def strings_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value, without the names of fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings_in(each)


def _rewritten(value: Any, path: str, redact: Callable[[str, str], str]) -> Any:
    """A JSON value in which `redact(text, path)` replaces each text."""
    if isinstance(value, str):
        return redact(value, path)
    if isinstance(value, list):
        return [_rewritten(each, f"{path}[{index}]", redact) for index, each in enumerate(value)]
    if isinstance(value, dict):
        return {name: _rewritten(each, f"{path}.{field_name(name)}", redact) for name, each in value.items()}
    return value


def _hits(text: str, suspects: Sequence[tuple[Detector, Finding]]) -> list[_Hit]:
    """Findings without overlaps, in the order of the text."""
    hits = [
        _Hit(detector, finding, found)
        for detector, finding in suspects
        if detector.may_find(text)
        for found in detector.find(text)
    ]
    hits.sort(key=lambda hit: (STRICTEST.index(hit.finding), hit.found.start - hit.found.end))
    # One byte per character: a row may have as many findings as words.
    taken = bytearray(len(text))
    kept: list[_Hit] = []
    for hit in hits:
        start, end = hit.found.start, hit.found.end
        if taken.find(1, start, end) < 0:
            taken[start:end] = b"\1" * (end - start)
            kept.append(hit)
    return sorted(kept, key=lambda hit: hit.found.start)


def _normal_form(code: Code, value: str) -> str:
    """A secret as it is, an e-mail address in lower case, a number without separators."""
    if code == Code.SECRET:
        return value
    if code == Code.EMAIL_ADDRESS:
        return value.casefold()
    return "".join(filter(str.isalnum, value)).upper()


def _redact(text: str, hits: list[_Hit]) -> str:
    parts: list[str] = []
    end = 0
    for hit in hits:
        if hit.finding == "Redact":
            parts += (text[end : hit.found.start], hit.detector.placeholder)
            end = hit.found.end
    return "".join((*parts, text[end:])) if parts else text


def _with_texts(
    row: Row, texts: list[str], calls: Mapping[int, Any], columns: tuple[tuple[str, str], ...]
) -> Row:
    messages = tuple(
        replace(
            message,
            content=texts[number],
            tool_calls=canonical_json.encode_in_order(calls[number]) if number in calls else None,
        )
        for number, message in enumerate(row.messages)
    )
    rejected = None if row.rejected is None else texts[-1]
    if (messages, rejected, columns) == (row.messages, row.rejected, row.columns):
        return row
    return replace(row, messages=messages, rejected=rejected, columns=columns)


def _issue(hit: _Hit, column: str) -> Issue:
    detector = hit.detector
    severity: Severity = "error" if hit.finding == "Fail" else "warning"
    fix = (
        f"{detector.placeholder} replaces it"
        if hit.finding == "Redact"
        else f"{detector.fix}, or set {detector.setting}: Redact"
    )
    return Issue(
        detector.code,
        f"{column} has {detector.name}{mark_quoted(f' ({hit.found.shown})', '')} at character"
        f" {hit.found.start + 1}",
        detector.expected,
        fix,
        column=QUOTED.sub(r"\1", column),
        severity=severity,
    )


def _name(name: str | None, role: str) -> str:
    return role if name is None else field_name(name)


def _column(row: Row, number: int, names: Columns) -> str:
    """The field of the source that has the message."""
    if number == len(row.messages):
        return _name(names.rejected, "rejected")
    if row.form == "ChatMessages":
        return f"{_name(names.messages, 'messages')}[{number}].content"
    if number == len(row.messages) - 1:
        if row.form == "Preference":
            return _name(names.chosen, "chosen")
        return _name(names.completion, "completion")
    prompt = _name(names.prompt, "prompt")
    is_text = len(row.messages) == 2 and row.messages[0].role == "user"
    return prompt if is_text else f"{prompt}[{number}].content"
