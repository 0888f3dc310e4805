# SPDX-License-Identifier: Apache-2.0
"""Read the examples in this folder: per kind a minimal object, objects with every field, and refusals."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_operator.api.crd import Kind
from tests.integration.api import Object
from tests.integration.rules.requests import NAMESPACE
from tests.mergepatch import merged

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Refusal:
    """A mistake, the message of the API server, and the correction.

    `given` and `corrected` are merged into the kind's minimal object.
    """

    kind: Kind
    case: str
    field: str
    refused_with: str
    given: Object
    corrected: Object

    def __str__(self) -> str:
        return f"{self.kind.name} with {self.case}"


@dataclass(frozen=True)
class Change:
    """Two valid values of one field of `spec`."""

    first: Any
    other: Any


def minimal(kind: Kind) -> Object:
    """The shortest valid object."""
    return _placed(kind, yaml.safe_load((_folder(kind) / "minimal.yaml").read_text()))


def complete(kind: Kind) -> list[Object]:
    """Valid objects that together have every field of `spec`."""
    documents = yaml.safe_load_all((_folder(kind) / "complete.yaml").read_text())
    return [_placed(kind, document) for document in documents]


def refusals(kind: Kind) -> list[Refusal]:
    """All cases of `refused-*.yaml`."""
    return [
        Refusal(
            kind,
            case["case"],
            case["field"],
            case["refused-with"],
            merged(minimal(kind), case["given"]),
            merged(minimal(kind), case.get("corrected", {})),
        )
        for path in sorted(_folder(kind).glob("refused-*.yaml"))
        for case in yaml.safe_load(path.read_text())
    ]


def changes(kind: Kind) -> dict[str, Change]:
    """Two values of each field of a record's `spec`."""
    entries = yaml.safe_load((_folder(kind) / "changes.yaml").read_text())
    return {name: Change(entry["first"], entry["other"]) for name, entry in entries.items()}


def _folder(kind: Kind) -> Path:
    return FOLDER / kind.name.lower()


def _placed(kind: Kind, document: Object) -> Object:
    return merged(document, {"metadata": {"namespace": NAMESPACE}}) if kind.namespaced else document
