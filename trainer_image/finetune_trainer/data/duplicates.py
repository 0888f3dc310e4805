# SPDX-License-Identifier: Apache-2.0
"""Finds rows that repeat others: leaked, duplicate, near duplicate and conflicting rows.

These rules select the rows of a dataset to keep. They apply in this order, each to the remaining rows:

- Leaked row: its input also occurs in a split that is held out more (of a training row in validation or test,
  of a validation row in test). It is removed. Splits by the hash of the input have no leaked rows. Splits by
  group or by the team and sources that are only trained on can have them, and cleaning can make different
  inputs equal.
- Leaked group: with split.groupBy, a row of a source that is only trained on is in the group of a held-out
  row. It is removed.
- Duplicate: an earlier row of the same split has the same input and answer. It is removed.
- Nearly leaked row: its input is near to that of a row in a split that is held out more, with the same
  answer, so evaluation would reward memorization. It is removed, unless near duplicates are off.
- Near duplicate: an earlier row of the same split has a near input and the same answer. The recipe says
  whether it is removed.
- Conflict: an earlier row has the same input and a different answer. The row is kept. Preferences conflict if
  they order the same two answers differently, and KTO rows if they label the same answer differently.

Inputs are compared across splits as a reader sees them, regardless of case, punctuation at the ends of words,
Unicode form, invisible characters and whitespace. Near duplicates compare answers regardless of case, Unicode
form, invisible characters and whitespace. Held-out rows of another dataset are compared by the rule within a
dataset.

Near duplicates are found by MinHash over the words of inputs, among rows with the same answer:

- Two rows are near if the sets of word trigrams of their inputs (with case folded) have a Jaccard similarity
  of about 0.8 or more, and their answers are equal. Similar inputs with different answers, such as two
  tickets that differ by a number and by the team they go to, are what a model should learn, and do no harm in
  a test.
- Prompts that come from one template share its words and would all be near each other. So trigrams that many
  of the first rows have are ignored.
- The share of trigrams means little for a short text, or for one with few words besides the template. Such
  texts are near only if all their words are equal.
- The search takes up to 5 KiB of memory per row. If there are too many rows for the memory, `limit_to_memory`
  chooses which ones are compared.
"""

import hashlib
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from finetune_trainer.contract.dataset import Cleaning
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.data.result import DuplicateKind, DuplicatePair, NearSearch
from finetune_trainer.data.row_index import (
    SPLIT_NUMBERS,
    SPLITS,
    RowIndex,
    fold_text,
    groups,
    visible_answer_digest,
)
from finetune_trainer.data.row_problems import RowPosition, normalize_visible
from finetune_trainer.data.split_files import read_rows as read_numbered
from finetune_trainer.rows import LEARNED_FROM, SPLIT_FILES, Row, read_rows

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


def limit_to_memory(order: "Numbers", answers: "Groups", held_out: "Mask") -> "Numbers":
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
        text = " ".join(found) or "\0".join(normalize_visible(message.content) for message in row.input)
        return set(), hashlib.sha256(text.encode()).digest()[:16]
    return own, None


def _words(row: Row) -> list[str]:
    return [word for message in row.input for word in WORD.findall(fold_text(message.content))]


def _trigrams(words: list[str]) -> set[bytes]:
    return {
        " ".join(words[start : start + TRIGRAM_WORDS]).encode()
        for start in range(len(words) - TRIGRAM_WORDS + 1)
    }


MAX_EXAMPLES_PER_KIND: Final = 100
"""Number of example pairs per kind in reports."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """Mask of the rows to keep, and the pairs of similar rows with their counts."""

    keep: "Mask"
    duplicates: int
    leaked: int
    near_leaked: int
    conflicting: int
    near_duplicates: int | None
    """None: not searched."""
    near_search: NearSearch | None
    """None: not searched."""
    leaks: "Mask"
    """The rows that were removed because of a held-out row."""
    index: RowIndex
    files: Sequence[RowPosition]
    """Positions of the files."""
    pairs: "tuple[tuple[DuplicateKind, Numbers, Numbers], ...]"
    """Per kind: the rows, and for each of them the row that it repeats or contradicts."""

    @property
    def example_pairs(self) -> tuple[DuplicatePair, ...]:
        """The first pairs of each kind."""
        return tuple(
            pair for part in self.pairs for pair in islice(self._pairs_of(*part), MAX_EXAMPLES_PER_KIND)
        )

    def all_pairs(self) -> Iterator[DuplicatePair]:
        """All pairs."""
        for part in self.pairs:
            yield from self._pairs_of(*part)

    def _pairs_of(self, kind: DuplicateKind, rows: "Numbers", of: "Numbers") -> Iterator[DuplicatePair]:
        for row, other in zip(rows, of, strict=True):
            yield DuplicatePair(kind, self._position(int(row)), self._position(int(other)))

    def _position(self, row: int) -> RowPosition:
        table = self.index.table
        position = self.files[int(table["file"][row])]
        return replace(position, record=int(table["record"][row]))


def select(index: RowIndex, rows: Rows, cleaning: Cleaning, files: Sequence[RowPosition]) -> Selection:
    """Decide which rows to keep. `rows` reads them again; `files` are the positions of the files.

    Raises OSError, and what `rows` raises.
    """
    import numpy as np

    table = index.table
    split = table["split"]
    numbers = np.arange(len(table), dtype=np.int32)
    inputs = groups(table["input"][:, 0], table["input"][:, 1])
    visible = groups(table["visible_input"])

    held_out = _highest(visible, split)
    leaks = split < held_out
    pairs = [_pairs("Leak", leaks, _firsts(visible, split == held_out))]
    if table["group"].any():
        by_group = groups(table["group"])
        held_out = _highest(by_group, split)
        of_group = (split < held_out) & (table["group"] != 0) & ~leaks
        pairs.append(_pairs("GroupLeak", of_group, _firsts(by_group, split == held_out)))
        leaks |= of_group
    keep = ~leaks

    first = _firsts(groups(table["answer"], inputs), keep)
    duplicates = keep & (first != numbers)
    keep &= ~duplicates
    pairs.append(_pairs("Exact", duplicates, first))

    option = cleaning.near_duplicates
    answers = groups(table["visible_answer"])
    order = _order(split, keep, answers)
    to = np.full(len(table), -1, dtype=np.int64)
    search: NearSearch | None = None
    if option != "Off":
        compared = limit_to_memory(order, answers, split > 0)
        search = NearSearch(rows=len(compared), of_rows=len(order))
        to = find_near(rows, compared, answers)
    near_leaks = (to >= 0) & (split[to] > split)
    near_duplicates = (to >= 0) & ~near_leaks
    keep &= ~near_leaks
    if option == "Remove":
        keep &= ~near_duplicates
    pairs += [_pairs("NearLeak", near_leaks, to), _pairs("Near", near_duplicates, to)]

    subjects = groups(table["subject"], inputs)
    first = _firsts(subjects, keep)
    conflicts = keep & (first != numbers)
    pairs.append(_pairs("Conflict", conflicts, first))

    return Selection(
        keep=keep,
        duplicates=int(np.count_nonzero(duplicates)),
        leaked=int(np.count_nonzero(leaks)),
        near_leaked=int(np.count_nonzero(near_leaks)),
        conflicting=int(np.count_nonzero(conflicts)),
        near_duplicates=None if option == "Off" else int(np.count_nonzero(near_duplicates)),
        near_search=search,
        leaks=leaks | near_leaks,
        index=index,
        files=files,
        pairs=tuple(pairs),
    )


def _order(split: "NDArray[np.uint8]", keep: "Mask", answers: "NDArray[np.int32]") -> "Numbers":
    """The rows that can have a near duplicate, from test to train: later rows are near to earlier ones."""
    import numpy as np

    order = np.argsort(-split.astype(np.int8), kind="stable")
    order = order[keep[order]]
    # A row whose answer occurs only once has no near duplicate.
    rows: Numbers = order[np.bincount(answers[order], minlength=1)[answers[order]] > 1]
    return rows


def _highest(group: "NDArray[np.int32]", split: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """The highest split number of each row's group."""
    import numpy as np

    highest = np.zeros(len(group), dtype=np.uint8)
    np.maximum.at(highest, group, split)
    return highest[group]


def _firsts(group: "NDArray[np.int32]", among: "Mask") -> "NDArray[np.int32]":
    """The first row of each row's group within `among`; the number of rows if there is none."""
    import numpy as np

    rows = np.flatnonzero(among).astype(np.int32)
    first = np.full(len(group), len(group), dtype=np.int32)
    np.minimum.at(first, group[rows], rows)
    return first[group]


def _pairs(
    kind: DuplicateKind, rows: "Mask", of: "NDArray[np.int32] | Numbers"
) -> "tuple[DuplicateKind, Numbers, Numbers]":
    import numpy as np

    found: Numbers = np.flatnonzero(rows)
    return kind, found, of[found].astype(np.int64)


HELD_OUT: Final[SplitName] = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """Rows that must not be learned from."""

    rows: Mapping[SplitName, tuple[int, ...]]
    """Their numbers in training and validation, from 1, in order."""
    near: int = 0
    """How many of them are only nearly the same as a held-out row."""
    unsearched: int = 0
    """Number of rows that were not searched for nearly equal ones, because all would take too much memory."""

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(map(len, self.rows.values()))


NO_LEAKS: Final = Leaks(rows=dict.fromkeys(LEARNED_FROM, ()))


def find_leaks(learned: Mapping[SplitName, Path], held_out: Path) -> Leaks:
    """Find learned rows with the input of a held-out row, or nearly that input and its answer.

    Memory grows by about a hundred bytes per row. Raises OSError.

    Args:
        learned: files of prepared rows, by split.
        held_out: file of prepared rows that must not be learned from.
    """
    index = RowIndex()
    files = {**{split: learned[split] for split in LEARNED_FROM}, HELD_OUT: held_out}
    for split in SPLITS:
        for number, row in enumerate(read_rows(files[split]), 1):
            index.add(row, split, 0, number)
    if not len(index):
        return NO_LEAKS
    splits = index.table["split"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, path in files.items():
            (folder / SPLIT_FILES[split]).symlink_to(path.resolve())
        selection = select(index, lambda wanted: read_numbered(folder, splits, wanted), Cleaning(), [])
    found: dict[SplitName, set[int]] = {split: set() for split in LEARNED_FROM}
    near = 0
    for kind, rows, of in selection.pairs:
        if kind not in ("Leak", "NearLeak"):
            continue
        for row, other in zip(rows.tolist(), of.tolist(), strict=True):
            if splits[other] == SPLIT_NUMBERS[HELD_OUT]:
                found[SPLITS[splits[row]]].add(int(index.table["record"][row]))
                near += kind == "NearLeak"
    search = selection.near_search
    return Leaks(
        rows={split: tuple(sorted(numbers)) for split, numbers in found.items()},
        near=near,
        unsearched=0 if search is None else search.of_rows - search.rows,
    )
