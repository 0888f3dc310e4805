# SPDX-License-Identifier: Apache-2.0
"""Salted hashes of the secrets and personal data in training rows, to find them in answers of a model.

The texts themselves are never stored. Like the rows next to it, the file must stay private: with it, guesses
can be tested, and all numbers of a short form tried.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.contract.dataset import Checks

SENSITIVE_VALUES: Final = "sensitive-values"
"""Name of the folder among those derived from a dataset."""
SENSITIVE_FILE: Final = "sensitive.json"
FORMAT: Final = 1
SALT_BYTES: Final = 16
MAX_HASHES: Final = 200_000
"""Max number of stored hashes; more values are not compared."""


@dataclass(frozen=True, slots=True)
class SensitiveHashes:
    """Hashes of the sensitive values of a dataset, and how they were found."""

    salt: str
    """In hexadecimal."""
    checks: Checks
    hashes: frozenset[str]
    """SHA-256 of salt and value, in hexadecimal."""
    complete: bool = True
    """False if there are more values than hashes."""

    def to_bytes(self) -> bytes:
        """The content of the file."""
        content = {
            "format": FORMAT,
            "salt": self.salt,
            "checks": asdict(self.checks),
            "hashes": sorted(self.hashes),
        }
        return canonical.encode(content if self.complete else {**content, "complete": False})

    @classmethod
    def from_bytes(cls, content: bytes) -> "SensitiveHashes":
        """Read a file. Raises ValueError, KeyError, TypeError if it is damaged or has a newer format."""
        value = json.loads(content)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}, not {FORMAT}")
        return cls(
            value["salt"], Checks(**value["checks"]), frozenset(value["hashes"]), value.get("complete", True)
        )

    def hash_of(self, value: str) -> str:
        """The salted hash of a value."""
        return _hash(self.salt, value)


@dataclass
class HashedValues:
    """Collects the hashes of a dataset's sensitive values, with a new salt."""

    salt: str = field(default_factory=lambda: secrets.token_hex(SALT_BYTES))
    hashes: set[str] = field(default_factory=set)
    complete: bool = True
    """False if a value was left out."""

    def add(self, values: Iterable[str]) -> None:
        """Add values, up to `MAX_HASHES` different ones."""
        for value in values:
            hashed = _hash(self.salt, value)
            if len(self.hashes) < MAX_HASHES:
                self.hashes.add(hashed)
            elif hashed not in self.hashes:
                self.complete = False
                return

    def found(self, checks: Checks) -> SensitiveHashes:
        """The hashes of values that were found by these checks."""
        return SensitiveHashes(self.salt, checks, frozenset(self.hashes), self.complete)


def _hash(salt: str, value: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + value.encode(errors="backslashreplace")).hexdigest()
