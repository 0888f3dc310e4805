# SPDX-License-Identifier: Apache-2.0
"""A quantile of values of which only the counts in the buckets of a histogram are known."""

import math
from dataclasses import dataclass
from functools import cached_property

from finetune_trainer.statistics.estimate import ConfidenceInterval
from finetune_trainer.statistics.proportion import Proportion


@dataclass(frozen=True)
class HistogramQuantile:
    """Quantile of the positive values in a histogram."""

    edges: tuple[float, ...]
    """Upper edges of the buckets, ascending; the last is infinite."""
    counts: tuple[int, ...]
    """Number of values up to each edge. The last one, of all values, is at least 1."""
    quantile: float
    groups: int | None = None
    """Number of independent groups of values, at least 1. None: each value is independent.

    The values of a group may all be equal, so the interval is that of as many values as there are groups."""

    @property
    def rows(self) -> int:
        """Number of independent values."""
        values = self.counts[-1]
        return values if self.groups is None else min(self.groups, values)

    @cached_property
    def value(self) -> float:
        """The quantile by linear interpolation, as `histogram_quantile` of Prometheus computes it.

        It is the highest finite edge if the quantile is above that.
        """
        rank = self.quantile * self.counts[-1]
        index = next(index for index, count in enumerate(self.counts) if count >= rank)
        below_edge = self.edges[index - 1] if index else 0.0
        if math.isinf(self.edges[index]):
            return below_edge
        below = self.counts[index - 1] if index else 0
        return below_edge + (self.edges[index] - below_edge) * (rank - below) / (self.counts[index] - below)

    @property
    def is_within_edges(self) -> bool:
        """Whether the quantile is at most the highest finite edge."""
        return self.counts[-2] >= self.quantile * self.counts[-1] if len(self.counts) > 1 else False

    def interval(self, level: float) -> ConfidenceInterval:
        """Return the two-sided interval at this level. The quantile is above its low bound.

        Its bounds are edges. The quantile is above an edge if the share of values up to the edge is below
        that of the quantile, and the interval of the share decides that. So the interval covers at least
        what it states.
        """
        low, high = 0.0, math.inf
        for edge, count in zip(self.edges, self.counts, strict=True):
            up_to_edge = round(count * self.rows / self.counts[-1])
            share = Proportion(up_to_edge, self.rows).interval(level)
            if share.high < self.quantile:
                low = edge
            if share.low >= self.quantile:
                high = edge
                break
        return ConfidenceInterval(low, high)
