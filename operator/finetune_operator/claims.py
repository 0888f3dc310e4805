"""PersistentVolumeClaims, looked up when a pass needs them: they are the users' and are not watched."""

import time
from collections.abc import Callable
from typing import Final

from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.resources import CLAIM
from finetune_operator.plan import Manifest

FRESH: Final = 10.0
"""Seconds for which an answer is used again, so that a thousand runs do not ask a thousand times."""


class Claims:
    """Short-lived answers to "what is this claim?"."""

    def __init__(self, cluster: Cluster, clock: Callable[[], float] = time.monotonic) -> None:
        self._cluster = cluster
        self._clock = clock
        self._answers: dict[tuple[str, str], tuple[float, Manifest | None]] = {}

    async def get(self, namespace: str, name: str) -> Manifest | None:
        """The claim, or None where there is none."""
        now = self._clock()
        known = self._answers.get((namespace, name))
        if known is not None and now - known[0] < FRESH:
            return known[1]
        self._answers = {key: answer for key, answer in self._answers.items() if now - answer[0] < FRESH}
        claim = await self._cluster.get(CLAIM, namespace, name)
        self._answers[namespace, name] = (now, claim)
        return claim
