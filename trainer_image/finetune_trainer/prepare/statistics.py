"""Facts about the rows of a dataset, counted while they pass."""

import hashlib

from finetune_trainer.contract import DataStatistics
from finetune_trainer.rows import Row


class Statistics:
    """Counts characters of the rows that are kept: all turns before the last, and the last."""

    def __init__(self) -> None:
        self.rows = 0
        self._prompt_sum = self._prompt_max = 0
        self._completion_sum = self._completion_max = 0
        self._completions: set[bytes] = set()

    def add(self, row: Row) -> None:
        """Count one row."""
        prompt = sum(len(message.content) for message in row.input)
        completion = len(row.output)
        self.rows += 1
        self._prompt_sum += prompt
        self._prompt_max = max(self._prompt_max, prompt)
        self._completion_sum += completion
        self._completion_max = max(self._completion_max, completion)
        self._completions.add(hashlib.sha256(row.output.encode()).digest()[:16])

    def record(self, *, source_rows: int, invalid_rows: int, duplicate_rows: int) -> DataStatistics:
        """The facts, with what was left out."""
        rows = max(self.rows, 1)
        return DataStatistics(
            source_rows=source_rows,
            invalid_rows=invalid_rows,
            duplicate_rows=duplicate_rows,
            prompt_characters_mean=round(self._prompt_sum / rows, 1),
            prompt_characters_max=self._prompt_max,
            completion_characters_mean=round(self._completion_sum / rows, 1),
            completion_characters_max=self._completion_max,
            distinct_completions=len(self._completions),
        )
