"""Series of namespaces and ComputeProfiles end some time after the last object that they count."""

import asyncio
from collections.abc import Callable, Iterable

from finetune_operator.metrics.counters import OperatorMetrics
from finetune_operator.plan import Key


class SeriesRetention:
    """Drops series once what they are labelled with has been gone for a whole period.

    At once would take along what was counted since the last scrape.

    Args:
        metrics: whose series.
        keys: of all objects of our kinds.
        period: seconds between two looks; many scrapes long.
    """

    def __init__(self, metrics: OperatorMetrics, keys: Callable[[], Iterable[Key]], period: float) -> None:
        self._metrics = metrics
        self._keys = keys
        self._period = period
        self._gone_namespaces: frozenset[str] = frozenset()
        self._gone_profiles: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look every period; never ends by itself."""
        while True:
            await asyncio.sleep(self._period)
            self.sweep()

    def sweep(self) -> None:
        """Drop what was gone at the last look, and still is."""
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
