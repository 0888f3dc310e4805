# SPDX-License-Identifier: Apache-2.0
"""Compare the verdict of `finetune validate` with the API server's."""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from finetune_client.offline.definitions import SCHEMAS
from finetune_client.offline.findings import Severity
from finetune_client.offline.schema import is_ours
from finetune_client.offline.validation import judge_ours
from tests.integration.api import Object

REPEATED: Final = (
    "some validation rules were not checked",
    "accessor error",
    "Checked value must be of type",
)
"""Parts of reasons that follow from a wrong type, which has its own reason."""


class Reason(Protocol):
    """A reason of a refusal: of the API server, or offline."""

    @property
    def field(self) -> str: ...

    @property
    def message(self) -> str: ...


def assert_same_verdict(manifest: Object, status: int, message: str, causes: Sequence[Reason]) -> None:
    """`finetune validate` accepts what the API server accepts; of what it refuses, it names the same fields,
    and says the same sentences of rules.

    The API server says nothing more about an object with unknown fields.
    """
    if not is_ours(manifest):
        return
    errors = [each for each in judge_ours(manifest) if each.severity is Severity.ERROR]
    if status < 300:
        assert not errors
    elif status == 400:
        unknown = set(re.findall(r'unknown field "([^"]+)"', message))
        assert {each.field for each in errors if each.message == "unknown field"} == unknown, message
    else:
        kind, reasons = manifest["kind"], [_Reason(each.field, each.message) for each in causes]
        reasons = [each for each in reasons if not any(part in each.message for part in REPEATED)]
        offline, server = ({each.field for each in said} for said in (errors, reasons))
        assert offline == server, (offline, server, message)
        offline_rules, server_rules = _sentences(kind, errors), _sentences(kind, reasons)
        assert offline_rules == server_rules, (offline_rules, server_rules)


@dataclass(frozen=True)
class _Reason:
    """A reason of the API server in the form of the offline ones: the object itself has no name."""

    written: str
    message: str

    @property
    def field(self) -> str:
        return "" if self.written == "<nil>" else self.written.removeprefix(".")


def _sentences(kind: str, reasons: Iterable[Reason]) -> set[tuple[str, str]]:
    """The broken rules: their fields and sentences. The API server writes the value before some."""
    return {
        (each.field, sentence)
        for each in reasons
        for sentence in _rules(kind)
        if each.message.endswith(sentence)
    }


@functools.cache
def _rules(kind: str) -> frozenset[str]:
    return frozenset(_messages(SCHEMAS[kind]))


def _messages(node: Any) -> Iterator[str]:
    """The sentences of all rules of a schema."""
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", ()))
        for child in node.values():
            yield from _messages(child)
