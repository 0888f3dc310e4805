# SPDX-License-Identifier: Apache-2.0
"""What is found in manifests, and where."""

from dataclasses import dataclass
from enum import StrEnum

Path = tuple[str | int, ...]
"""Steps from the root of an object: names of fields and indexes of lists."""


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    """The API server refuses the object."""
    WARNING = "warning"
    """The API server accepts the object, which probably does not do what its author wants."""
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding about an object.

    Attributes:
        path: the field that the line number refers to.
        field: the field as the API server writes it; empty for the whole object.
        message: what is wrong; for a rule of a definition, the API server's own sentence.
        advice: what to do next, in addition to the message; empty if the message says it.
    """

    severity: Severity
    path: Path
    field: str
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Located:
    """A finding with its place.

    Attributes:
        file: as the user named it, or found in a folder; `-` for the standard input.
        line: from 1.
        kind: empty if the file has no object there.
        name: empty if the object has none.
    """

    file: str
    line: int
    kind: str
    name: str
    finding: Finding

    def __str__(self) -> str:
        finding = self.finding
        about = f"{self.kind}/{self.name}" if self.name else self.kind
        severity = "" if finding.severity is Severity.ERROR else f"{finding.severity}: "
        text = f"{finding.message}; {finding.advice}" if finding.advice else finding.message
        parts = [f"{self.file}:{self.line}", about, finding.field, f"{severity}{text}"]
        line = ": ".join(part for part in parts if part)
        # Text of a file must not control the terminal.
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in line)

    def to_dict(self) -> dict[str, str | int]:
        """The finding as JSON, without absent parts."""
        finding = self.finding
        every: dict[str, str | int] = {
            "severity": str(finding.severity),
            "file": self.file,
            "line": self.line,
            "kind": self.kind,
            "name": self.name,
            "field": finding.field,
            "message": finding.message,
            "advice": finding.advice,
        }
        return {key: value for key, value in every.items() if value != ""}


def counted(number: int, noun: str) -> str:
    """A number of things: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def join_field(path: Path) -> str:
    """A path as the API server writes it: `spec.gates[0].metric`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")
