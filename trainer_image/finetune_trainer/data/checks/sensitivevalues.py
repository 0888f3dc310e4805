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

    def to_bytes(self) -> bytes:
        """The content of the file."""
        return canonical.encode(
            {
                "format": FORMAT,
                "salt": self.salt,
                "checks": asdict(self.checks),
                "hashes": sorted(self.hashes),
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> "SensitiveHashes":
        """Read a file. Raises ValueError, KeyError, TypeError if it is damaged or has a newer format."""
        value = json.loads(content)
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}, not {FORMAT}")
        return cls(value["salt"], Checks(**value["checks"]), frozenset(value["hashes"]))

    def hash_of(self, value: str) -> str:
        """The salted hash of a value."""
        return _hash(self.salt, value)


@dataclass
class HashedValues:
    """Collects the hashes of a dataset's sensitive values, with a new salt."""

    salt: str = field(default_factory=lambda: secrets.token_hex(SALT_BYTES))
    hashes: set[str] = field(default_factory=set)

    def add(self, values: Iterable[str]) -> None:
        """Add values, up to `MAX_HASHES` different ones."""
        for value in values:
            if len(self.hashes) >= MAX_HASHES:
                return
            self.hashes.add(_hash(self.salt, value))

    def found(self, checks: Checks) -> SensitiveHashes:
        """The hashes of values that were found by these checks."""
        return SensitiveHashes(self.salt, checks, frozenset(self.hashes))


def _hash(salt: str, value: str) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + value.encode(errors="backslashreplace")).hexdigest()
