# SPDX-License-Identifier: Apache-2.0
"""Labels of a classification, and the label that an answer names."""

from collections import Counter
from collections.abc import Iterable

from finetune_trainer.scoring.normalization import normalize


class LabelSet:
    """The labels, in order."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.names: tuple[str, ...] = tuple(labels)
        self._exact = {name: index for index, name in enumerate(self.names)}
        normalized = [normalize(name) for name in self.names]
        times = Counter(normalized)
        self._normalized = {text: index for index, text in enumerate(normalized) if times[text] == 1}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, answer: str) -> int | None:
        """Index of the label that the whole answer names; None if it names none.

        The answer equals the label, or does so after `normalize` if no two labels do.
        """
        exact = self._exact.get(answer)
        return self._normalized.get(normalize(answer)) if exact is None else exact
