# SPDX-License-Identifier: Apache-2.0
"""Runs in several pods at certain stages, and states of their pods."""

from datetime import timedelta
from typing import Any

from finetune_client.local.cluster import at
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.plan import Manifest
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    BASE,
    HYPERPARAMETERS,
    JOB,
    claim,
    dataset,
    prepared,
    profile,
)
from tests.unit.operator.runsteps import reached

TWO = {"compute": {"nodes": 2}}


def training(**spec: Any) -> MemoryCluster:
    return reached("train", **{**TWO, **spec})


def running(cluster: MemoryCluster) -> Manifest:
    return {"running": {"startedAt": at(cluster.now)}}


def ended(cluster: MemoryCluster, code: int, message: str = "", reason: str = "Error") -> Manifest:
    times = {"startedAt": at(cluster.now - timedelta(seconds=5)), "finishedAt": at(cluster.now)}
    return {"terminated": {"exitCode": code, "message": message, "reason": reason, **times}}


def both_run(cluster: MemoryCluster) -> None:
    for index in (0, 1):
        cluster.pod("train", running(cluster), index=index)
    cluster.settle()


def state(cluster: MemoryCluster, type_: str = "Reconciling") -> tuple[str, str]:
    cluster.settle()
    condition = cluster.condition("FineTuneJob", JOB, type_)
    assert condition is not None
    return condition["reason"], condition["message"]


def service_of(cluster: MemoryCluster) -> Manifest:
    (service,) = cluster.of("Service").values()
    return service


def preflighted_run(run: Manifest, *profiles: Manifest) -> MemoryCluster:
    """A run that has passed preflight."""
    cluster = MemoryCluster(profile(), *profiles, claim("artifacts"), claim("models"), dataset(), run)
    cluster.settle()
    cluster.succeed("prepare", prepared())
    cluster.settle()
    status = cluster.objects["FineTuneJob", run["metadata"]["name"]]["status"]
    hyperparameters = ResolvedHyperparameters(**HYPERPARAMETERS.model_dump()).to_dict()
    status["resolved"] |= {"baseModelDigest": BASE, "hyperparameters": hyperparameters}
    cluster.settle()
    return cluster
