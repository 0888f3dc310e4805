# SPDX-License-Identifier: Apache-2.0
"""Jobs in one namespace whose pods a quota refuses."""

import asyncio
from typing import Any, Final

from tools.bench.operator import workload
from tools.bench.operator.controlplanes import client, create
from tools.bench.operator.crowds.crowd import (
    IDLE_SECONDS,
    NAMESPACE,
    Ceilings,
    Crowd,
    CrowdScene,
    numbered,
    reconciling,
)
from tools.bench.operator.requestledger import USER

QUOTA: Final[dict[str, Any]] = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "full", "namespace": NAMESPACE},
    "spec": {"hard": {"pods": "0"}},
}


async def _measure_refused(stage: CrowdScene) -> None:
    stage.apply(workload.namespace(NAMESPACE), QUOTA, *workload.claims(NAMESPACE), workload.profile())
    async with client(stage.plane, USER) as user, stage.operator() as operator:
        async with operator.phase("refused"):
            await create(user, (workload.dataset(name, NAMESPACE) for name in numbered("rows", stage.size)))
            await stage.until_all(
                user, "Dataset", "are refused", lambda each: reconciling(each)[0] == "QuotaExceeded"
            )
        async with operator.phase("waiting"):
            await asyncio.sleep(IDLE_SECONDS)


REFUSED: Final = Crowd(
    "refused",
    "{size} Jobs in one namespace that a quota refuses",
    1000,
    {
        "refused": Ceilings(requests_per_second=100, writes=10000, stall_seconds=0.25, peak_mebibytes=250),
        "waiting": Ceilings(requests_per_second=3, writes=100, stall_seconds=0.25, peak_mebibytes=250),
    },
    _measure_refused,
)
