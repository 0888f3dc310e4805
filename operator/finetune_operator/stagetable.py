"""What the operator knows of each stage, one row per stage; the configs of stages have builders of their own.

`Stage` of the contract stays the vocabulary. Fields of a ComputeProfile and of statuses that name stages are
part of the API; a test holds them equal to this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_operator.api.podresources import PodResources
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import Stage

JobStage = Stage | Literal["collect", "cleanup"]
"""Stages that have a Job: those of runs, and two small ones that work for them."""
Queue = Literal["prepare", "train", "evaluate"]


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage."""

    resources: PodResources
    """CPU and memory of its container where the profile says nothing."""
    running: Reason | None = None
    """Of `Reconciling` while its pod runs. None: a Job that works for another stage."""
    condition: ConditionType | None = None
    """Of the run: True once the stage has succeeded."""
    backoff_limit: int = 2
    """Failures of pods after which its Job fails, not counting the first."""
    queue: Queue = "prepare"
    """Under which of a profile's per-stage names it queues and has its priority."""
    devices: Literal["none", "one", "all"] = "none"
    """Devices of each pod: all are those that the run asks for."""
    multi_node: bool = False
    """Whether it has a pod on each of the run's nodes, and a report of its metrics."""
    grace_seconds: int | None = None
    """From SIGTERM to SIGKILL. None: the cluster's default."""
    in_profile: bool = True
    """Whether a profile has `spec.resources` for it."""

    @property
    def uses_devices(self) -> bool:
        return self.devices != "none"

    def devices_of(self, requested: int) -> int:
        """Devices of each pod, of a run that asks for this many."""
        return {"none": 0, "one": 1, "all": requested}[self.devices]


STAGES: Final[Mapping[JobStage, StageRow]] = {
    "prepare": StageRow(
        # Enough for five million rows, and for the hashes of 200,000 rows to find near duplicates.
        resources=PodResources(cpu="100m", memory="1536Mi"),
        running=Reason.PREPARING,
        condition=ConditionType.DATASET_READY,
    ),
    "preflight": StageRow(
        resources=PodResources(cpu="500m", memory="3Gi"),
        running=Reason.PREFLIGHT,
        condition=ConditionType.PREFLIGHTED,
    ),
    "train": StageRow(
        resources=PodResources(cpu="1", memory="4Gi"),
        running=Reason.TRAINING,
        condition=ConditionType.TRAINED,
        backoff_limit=3,
        queue="train",
        devices="all",
        multi_node=True,
        # Time to finish a step and save the resume state.
        grace_seconds=120,
    ),
    "evaluate": StageRow(
        resources=PodResources(cpu="1", memory="4Gi"),
        running=Reason.EVALUATING,
        condition=ConditionType.EVALUATED,
        queue="evaluate",
        devices="one",
    ),
    "collect": StageRow(resources=PodResources(cpu="50m", memory="256Mi"), in_profile=False),
    "cleanup": StageRow(resources=PodResources(cpu="50m", memory="256Mi"), backoff_limit=0, in_profile=False),
}
