"""Rows that say nearly the same: MinHash of the words of their inputs, of rows with the same answer.

Two rows are near where the sets of their inputs' word triples (in small letters; of texts with fewer than
three words, the words) have a Jaccard similarity of about 0.8 or more, and their answers are equal. Inputs
that are alike with different answers, such as two tickets that differ by a number and by the team they go to,
are what a model is to learn from, and no harm in a test.

Prompts that are made by a template share its words, and would all be near each other. So word triples that
many of the first rows have are left out: they say nothing of a row.
"""

import re
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.index import answer_digest
from finetune_trainer.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]

THRESHOLD: Final = 0.8
PERMUTATIONS: Final = 128
"""The estimate of a similarity of 0.8 has a standard error of 0.035."""
BANDS: Final = (9, 8)
"""Bands, and hashes in each: 81 % of the pairs at the threshold are candidates, 99 % of those at 0.9. Each
band takes about 370 bytes of memory a row."""
TRIPLE: Final = 3
WORD: Final = re.compile(r"\w+")

SAMPLE_ROWS: Final = 1000
TEMPLATE_SHARE: Final = 0.05
TEMPLATE_ROWS: Final = 10
"""A triple is the template's where so large a share of the first rows, and so many of them, have it."""


class NearDuplicates:
    """Takes the rows in the order of the index; gives up beyond `limit` rows.

    Half a kibibyte a row, and less than four more while it finds them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.gave_up = False
        self._rows = 0
        self._sample: list[tuple[int, set[bytes]]] = []
        self._template: frozenset[bytes] | None = None
        self._signatures = bytearray()
        self._empty: Any = None

    def add(self, row: Row) -> None:
        """Remember the next row."""
        if self.gave_up:
            return
        self._rows += 1
        if self._rows > self.limit:
            self.gave_up = True
            self._sample.clear()
            self._signatures.clear()
            return
        # The answer is where hashing begins, so that rows with different answers have no hash in common.
        seed = int.from_bytes(answer_digest(row)[:4], "big")
        triples = _triples(row)
        if self._template is None:
            self._sample.append((seed, triples))
            if len(self._sample) == SAMPLE_ROWS:
                self._end_sample()
        else:
            self._sign(seed, triples, self._template)

    def find(self, order: "Numbers", answers: "NDArray[np.int32]") -> "Numbers":
        """For each row added, the row that it is near to, or -1.

        `order` has the rows to look at: a row is near to the first one there that is itself near to none.
        `answers` has a number for each row added, equal where answers are.
        """
        import numpy as np
        from datasketch import MinHashLSH

        self._end_sample()
        near = np.full(self._rows, -1, dtype=np.int64)
        signatures = np.frombuffer(self._signatures, dtype=np.uint32).reshape(-1, PERMUTATIONS)
        # Most answers are given once.
        order = order[np.bincount(answers[order])[answers[order]] > 1]
        index = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        for position, number in enumerate(order.tolist()):
            signature = self._min_hash(hashvalues=signatures[number])
            candidates = order[sorted(index.query(signature))]
            candidates = candidates[answers[candidates] == answers[number]]
            alike = (signatures[candidates] == signatures[number]).mean(axis=1) >= THRESHOLD
            if alike.any():
                near[number] = candidates[alike.argmax()]
            else:
                index.insert(position, signature, check_duplication=False)
        return near

    def _end_sample(self) -> None:
        if self._template is not None:
            return
        counts = Counter(triple for _, triples in self._sample for triple in triples)
        least = max(TEMPLATE_ROWS, TEMPLATE_SHARE * len(self._sample))
        self._template = frozenset(triple for triple, rows in counts.items() if rows >= least)
        for seed, triples in self._sample:
            self._sign(seed, triples, self._template)
        self._sample.clear()

    def _sign(self, seed: int, triples: set[bytes], template: frozenset[bytes]) -> None:
        own = triples - template or triples
        signature = self._min_hash()
        signature.hashfunc = lambda triple: zlib.crc32(triple, seed)
        signature.update_batch(own)
        self._signatures += signature.hashvalues.tobytes()

    def _min_hash(self, **values: Any) -> Any:
        """A signature that shares the permutations of all."""
        from datasketch import MinHash

        if self._empty is None:
            self._empty = MinHash(num_perm=PERMUTATIONS, scheme="affine32")
        return MinHash(
            num_perm=PERMUTATIONS, permutations=self._empty.permutations, scheme="affine32", **values
        )


def _triples(row: Row) -> set[bytes]:
    words = [word for message in row.input for word in WORD.findall(message.content.lower())]
    if len(words) < TRIPLE:
        return {word.encode() for word in words}
    return {" ".join(words[start : start + TRIPLE]).encode() for start in range(len(words) - TRIPLE + 1)}
