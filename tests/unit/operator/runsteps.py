# SPDX-License-Identifier: Apache-2.0
"""Runs at certain stages, for the tests of later stages."""

from collections.abc import Callable
from typing import Any, Final

from finetune_operator.plan import Manifest
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    JOB,
    dataset,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)

STAGES: Final = ("preflight", "train", "evaluate")
RESULTS: Final[dict[str, Callable[[], StageResult]]] = {
    "preflight": preflighted,
    "train": trained,
    "evaluate": evaluated,
}


def started(**spec: Any) -> MemoryCluster:
    """A run with these fields in its spec whose data is ready and whose first stage has started."""
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob(**spec))
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    return cluster


def ended(data: Manifest | None = None, **spec: Any) -> MemoryCluster:
    """A run with these fields in its spec that was evaluated and, if its gates pass, promoted."""
    cluster = MemoryCluster(*prerequisites(), data or dataset(), finetunejob(**spec))
    cluster.settle()
    cluster.succeed("prepare", prepared(), after=5)
    for stage in STAGES:
        cluster.settle()
        cluster.succeed(stage, RESULTS[stage](), after=10)
    cluster.settle()
    return cluster


def reached(stage: str, **spec: Any) -> MemoryCluster:
    """A run with these fields in its spec in which this stage's Job exists, but no pod of it has run."""
    cluster = started(**spec)
    for earlier in STAGES[: STAGES.index(stage)]:
        cluster.succeed(earlier, RESULTS[earlier](), after=10)
        cluster.settle()
    return cluster


def delete_run(cluster: MemoryCluster) -> None:
    """Delete the run, and let the pod that removes its folder succeed."""
    cluster.delete("FineTuneJob", JOB)
    for _ in range(3):
        if ("FineTuneJob", JOB) in cluster.objects:
            cluster.reconcile("FineTuneJob", JOB)
        if cluster.has_stage_job("cleanup") and ("FineTuneJob", JOB) in cluster.objects:
            cluster.end("cleanup", "")
