# SPDX-License-Identifier: Apache-2.0
"""Drop series of namespaces and ComputeProfiles some time after the last object that they count."""

import asyncio
from collections.abc import Callable, Iterable

from finetune_operator.metrics.counters import OperatorMetrics
from finetune_operator.plan import Key


class SeriesRetention:
    """Drops series after their namespace or ComputeProfile has been gone for a whole period.

    Dropping them at once would lose values that were counted after the last scrape.

    Args:
        metrics: the metrics whose series to drop.
        keys: returns the keys of all objects of our kinds.
        period: seconds between two sweeps; longer than many scrapes.
    """

    def __init__(self, metrics: OperatorMetrics, keys: Callable[[], Iterable[Key]], period: float) -> None:
        self._metrics = metrics
        self._keys = keys
        self._period = period
        self._gone_namespaces: frozenset[str] = frozenset()
        self._gone_profiles: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Sweep once per period, without end."""
        while True:
            await asyncio.sleep(self._period)
            self.sweep()

    def sweep(self) -> None:
        """Drop the series of what was gone at the last sweep and is still gone."""
        namespaces, profiles = set(), set()
        for key in self._keys():
            if key.kind == "ComputeProfile":
                profiles.add(key.name)
            else:
                namespaces.add(key.namespace)
        gone = frozenset(self._metrics.namespaces - namespaces)
        for namespace in gone & self._gone_namespaces:
            self._metrics.forget_namespace(namespace)
        self._gone_namespaces = gone
        gone = frozenset(self._metrics.profiles - profiles)
        for profile in gone & self._gone_profiles:
            self._metrics.forget_profile(profile)
        self._gone_profiles = gone
