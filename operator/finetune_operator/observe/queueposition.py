# SPDX-License-Identifier: Apache-2.0
"""Positions of Jobs and pods in their queues, from Kueue's visibility API."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from finetune_operator.plan import Manifest

LAST_EXACT: Final = 10
STEPS: Final = (11, 21, 51, 101, 201, 501)
"""Positions after `LAST_EXACT` are shown as the largest of these that is not above them.

When the head of a long queue is admitted, all positions change, but at most 16 of the texts.
"""


class QueuePosition(NamedTuple):
    """Positions of one Workload; 1 is the head."""

    local_queue: int
    cluster_queue: int

    def __str__(self) -> str:
        return f"at position {_shown(self.local_queue)} ({_shown(self.cluster_queue)} in its ClusterQueue)"


Positions = Mapping[str, QueuePosition]
"""Positions by the uid of the Job or pod."""
UNKNOWN: Final[Positions] = MappingProxyType({})


def slim_summary(summary: Manifest) -> Manifest:
    """The positions in a `PendingWorkloadsSummary`, which is ten times as large.

    `positionInLocalQueue` is not used: Kueue v0.17 also lists and counts the Workloads of LocalQueues that
    have the same name in other namespaces.
    """
    positions: dict[str, QueuePosition] = {}
    counts: Counter[str] = Counter()
    for item in sorted(summary.get("items") or (), key=_position):
        namespace = item["metadata"]["namespace"]
        counts[namespace] += 1
        position = QueuePosition(counts[namespace], _position(item) + 1)
        owners = item["metadata"].get("ownerReferences") or ()
        positions |= {owner["uid"]: position for owner in owners}
    return {"kind": summary["kind"], "metadata": {}, "positions": positions}


def _position(item: Manifest) -> int:
    """Position in the ClusterQueue, from 0. A version of the API may omit 0."""
    position: int = item.get("positionInClusterQueue", 0)
    return position


def _shown(position: int) -> str:
    if position <= LAST_EXACT:
        return str(position)
    return f"{max(step for step in STEPS if step <= position)} or later"
