# SPDX-License-Identifier: Apache-2.0
"""Measure the same number of bare Jobs, created by a user: the lower bound for one Job per run."""

import asyncio
from dataclasses import dataclass

from tools.bench.operator import workload
from tools.bench.operator.controlplanes import client, control_plane, create
from tools.bench.operator.requestledger import USER, RequestLedger, Requests, Spread
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog


@dataclass(frozen=True, slots=True)
class Floor:
    """Cost of the bare Jobs.

    Attributes:
        jobs: time until the Jobs exist; the Job controller creates pods meanwhile.
        requests: requests of all clients for all Jobs.
    """

    jobs: Spread
    requests: Requests


def measure_floor(jobs: int) -> Floor:
    """Start a control plane, measure, and remove it.

    Raises:
        ClusterError: the control plane did not start.
    """
    with control_plane("floor") as plane:
        return asyncio.run(_measure_bare_jobs(plane, jobs))


async def _measure_bare_jobs(plane: ControlPlane, jobs: int) -> Floor:
    ledger = RequestLedger(AuditLog(plane.audit_log))
    async with client(plane, USER) as user:
        await user.create(workload.namespace())
        await create(user, map(workload.bare_job, range(jobs)))
    await ledger.until_quiet()
    return Floor(ledger.spread(ledger.first_jobs), ledger.requests)
