# SPDX-License-Identifier: Apache-2.0
"""Search for near duplicates: MinHash over the words of inputs, among rows with the same answer.

Two rows are near if the sets of word trigrams of their inputs (with case folded) have a Jaccard similarity of
about 0.8 or more, and their answers are equal. Similar inputs with different answers, such as two tickets
that differ by a number and by the team they go to, are what a model should learn, and do no harm in a test.

Prompts that come from one template share its words and would all be near each other. So trigrams that many
of the first rows have are ignored.

The share of trigrams means little for a short text, or for one with few words besides the template. Such
texts are near only if all their words are equal.

The search takes up to 5 KiB of memory per row. If there are too many rows for the memory, `affordable`
chooses which ones are compared.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.data.index import folded, visible_answer_digest
from finetune_trainer.data.textchecks import visible_text
from finetune_trainer.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]
    Groups = NDArray[np.int32]
    Signatures = NDArray[np.uint32]
    Mask = NDArray[np.bool_]

MIN_SIMILARITY: Final = 0.8
PERMUTATIONS: Final = 128
"""Hashes per signature: the standard error of an estimated similarity of 0.8 is 0.035."""
BANDS: Final = (9, 8)
"""Number of bands, and hashes per band: 81 % of the pairs at the minimum similarity are candidates, and 99 %
of those at 0.9. Each band takes about 370 bytes of memory per row."""
TRIGRAM_WORDS: Final = 3
WORD: Final = re.compile(r"\w+")
TRIGRAMS_PER_UPDATE: Final = 4096
"""Number of trigrams that are hashed together; each takes 1 KiB meanwhile."""

SAMPLE_ROWS: Final = 1000
MIN_TEMPLATE_SHARE: Final = 0.05
MIN_TEMPLATE_ROWS: Final = 10
"""A trigram belongs to the template if at least this share and this number of the first rows have it."""

MIN_WORDS: Final = 8
"""Texts with fewer words are compared as a whole."""
MIN_TRIGRAMS: Final = 4
"""Texts with fewer trigrams besides the template's are compared as a whole, because each is a large share."""

MAX_BYTES: Final = 1 << 30
"""Max memory of a preparation when it searches."""
ROW_BYTES: Final = 5 << 10
"""Memory per row that is compared."""
INDEXED_BYTES: Final = 140
"""Memory per row of the index and for the groups of equal rows."""
MIN_ROWS: Final = 50_000
"""Number of rows that are compared at least, however many rows there are."""

Rows = Callable[["Mask"], Iterator[tuple[int, Row]]]
"""Reads the rows that a mask selects, with their numbers, in any order."""


def affordable(order: "Numbers", answers: "Groups", held_out: "Mask") -> "Numbers":
    """The rows of `order` for which the memory suffices, in the same order: all of them if possible.

    Otherwise whole groups of rows with the same answer, the smallest first, because nothing is missed in
    them. Of the next group, equally many held-out and training rows. `held_out` has a value per row of the
    index.
    """
    import numpy as np

    limit = max(MIN_ROWS, (MAX_BYTES - INDEXED_BYTES * len(answers)) // ROW_BYTES)
    if len(order) <= limit:
        return order
    of_answer = answers[order]
    size = np.bincount(of_answer)[of_answer]
    # The number of each row among the held-out rows of its answer, or among the training rows.
    half = of_answer.astype(np.int64) * 2 + held_out[order]
    by_half = np.argsort(half, kind="stable")
    begins = np.flatnonzero(np.diff(half[by_half], prepend=-1))
    number = np.empty(len(order), dtype=np.int64)
    number[by_half] = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    chosen: Numbers = order[np.sort(np.lexsort((number, of_answer, size))[:limit])]
    return chosen


def find_near(rows: Rows, order: "Numbers", answers: "Groups") -> "Numbers":
    """For each row of the index, the number of the row that it is near to, or -1. Raises OSError.

    `order` has the rows to compare: a row is near to the first one there that is itself near to none.
    `answers` has a number per row of the index, equal for equal answers. Memory: 0.5 KiB per row in `order`,
    and less than 4 KiB more during the search.
    """
    import numpy as np

    near = np.full(len(answers), -1, dtype=np.int64)
    if not len(order):
        return near
    template = _template(rows, len(answers))
    wanted = np.zeros(len(answers), dtype=bool)
    wanted[order] = True
    positions = np.full(len(answers), -1, dtype=np.int64)
    positions[order] = np.arange(len(order))
    signatures = np.zeros((len(order), PERMUTATIONS), dtype=np.uint32)
    signer = _Signer()
    texts: dict[int, bytes] = {}
    for number, row in rows(wanted):
        features, text = _features(row, template)
        if text is None:
            # The answer seeds the hash, so that rows with different answers have no hash in common.
            seed = visible_answer_digest(row)
            signatures[positions[number]] = signer.sign(features, int.from_bytes(seed[:4], "big"))
        else:
            texts[number] = text
    _find_equal(near, order, answers, texts)
    _find_similar(near, order, answers, signatures, texts)
    return near


def _find_equal(near: "Numbers", order: "Numbers", answers: "Groups", texts: dict[int, bytes]) -> None:
    first: dict[tuple[int, bytes], int] = {}
    for number in order.tolist():
        if number in texts:
            earlier = first.setdefault((int(answers[number]), texts[number]), number)
            if earlier != number:
                near[number] = earlier


def _find_similar(
    near: "Numbers", order: "Numbers", answers: "Groups", signatures: "Signatures", texts: dict[int, bytes]
) -> None:
    if len(texts) == len(order):
        return
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
    permutations = MinHash(num_perm=PERMUTATIONS, scheme="affine32").permutations
    for position, number in enumerate(order.tolist()):
        if number in texts:
            continue
        signature = MinHash(
            num_perm=PERMUTATIONS,
            permutations=permutations,
            scheme="affine32",
            hashvalues=signatures[position],
        )
        positions = sorted(index.query(signature))
        candidates = order[positions]
        same = answers[candidates] == answers[number]
        alike = (signatures[positions] == signatures[position]).mean(axis=1) >= MIN_SIMILARITY
        if (same & alike).any():
            near[number] = candidates[(same & alike).argmax()]
        else:
            index.insert(position, signature, check_duplication=False)


class _Signer:
    """Computes signatures with common permutations."""

    def __init__(self) -> None:
        self._empty: Any = None

    def sign(self, features: set[bytes], seed: int) -> "Signatures":
        from datasketch import MinHash

        if self._empty is None:
            self._empty = MinHash(num_perm=PERMUTATIONS, scheme="affine32")
        signature = MinHash(
            num_perm=PERMUTATIONS,
            permutations=self._empty.permutations,
            scheme="affine32",
            hashfunc=lambda feature: zlib.crc32(feature, seed),
        )
        every = list(features)
        for start in range(0, len(every), TRIGRAMS_PER_UPDATE):
            signature.update_batch(every[start : start + TRIGRAMS_PER_UPDATE])
        values: Signatures = signature.hashvalues
        return values


def _template(rows: Rows, count: int) -> frozenset[bytes]:
    """The trigrams that many of the first rows share."""
    import numpy as np

    sample = np.arange(count) < SAMPLE_ROWS
    counts: Counter[bytes] = Counter()
    count_sampled = 0
    for _, row in rows(sample):
        counts.update(_trigrams(_words(row)))
        count_sampled += 1
    minimum = max(MIN_TEMPLATE_ROWS, MIN_TEMPLATE_SHARE * count_sampled)
    return frozenset(trigram for trigram, found in counts.items() if found >= minimum)


def _features(row: Row, template: frozenset[bytes]) -> tuple[set[bytes], bytes | None]:
    """The row's trigrams besides the template's, or the digest of a text that is compared as a whole."""
    found = _words(row)
    trigrams = _trigrams(found)
    own = trigrams - template
    if len(found) < MIN_WORDS or len(own) < MIN_TRIGRAMS:
        # A text without words, such as emojis only, is compared by its characters.
        text = " ".join(found) or "\0".join(visible_text(message.content) for message in row.input)
        return set(), hashlib.sha256(text.encode()).digest()[:16]
    return own, None


def _words(row: Row) -> list[str]:
    return [word for message in row.input for word in WORD.findall(folded(message.content))]


def _trigrams(words: list[str]) -> set[bytes]:
    return {
        " ".join(words[start : start + TRIGRAM_WORDS]).encode()
        for start in range(len(words) - TRIGRAM_WORDS + 1)
    }
