"""Rows that say the same again, and rows that contradict each other."""

import hashlib

from finetune_trainer import canonical
from finetune_trainer.rows import Row

KEY_BYTES = 16
"""Of SHA-256: two of a billion rows collide with a chance of one in 10^20."""


class Duplicates:
    """Remembers every row by hashes only, about 150 bytes a row.

    `exact` counts rows whose input and output came before; `conflicting` counts other rows whose input came
    before, with another output.
    """

    def __init__(self) -> None:
        self.exact = 0
        self.conflicting = 0
        self._rows: set[bytes] = set()
        self._inputs: set[bytes] = set()

    def is_new(self, row: Row) -> bool:
        """Whether the row came for the first time; it is counted and remembered."""
        key = _key([message.to_dict() for message in row.messages])
        if key in self._rows:
            self.exact += 1
            return False
        self._rows.add(key)
        subject = _key([message.to_dict() for message in row.input])
        self.conflicting += subject in self._inputs
        self._inputs.add(subject)
        return True


def _key(value: object) -> bytes:
    return hashlib.sha256(canonical.encode(value)).digest()[:KEY_BYTES]
