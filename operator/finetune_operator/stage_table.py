# SPDX-License-Identifier: Apache-2.0
"""What the operator knows about each stage, one row per stage; the config of a stage has its own builder.

`Stage` of the contract is the vocabulary. Fields of a ComputeProfile and of statuses that name stages are
part of the API; a test compares them with this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from finetune_operator.api.pod_resources import PodResources
from finetune_operator.api.pod_template import SIZED_STAGES, PodStage
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.vocabulary import ResultStage

JobStage = ResultStage | Literal["collect", "cleanup", "download", "fill", "merge"]
"""Stages that have a Job: those with a result, two small ones for them, and three for endpoints."""
Queue = Literal["cpu", "train", "evaluate"]
ProfileField = Literal["compute", "evaluation"]


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage."""

    resources: PodResources
    """CPU and memory of its container if the profile does not set them."""
    running: Reason | None = None
    """Reason of `Reconciling` while its pod runs. None: its Job works for another stage or an endpoint."""
    condition: ConditionType | None = None
    """Condition of the run that becomes True when the stage succeeds."""
    backoff_limit: int = 2
    """Number of pod failures, after the first, at which its Job fails."""
    queue: Queue = "cpu"
    """Name in a profile's `kueue.queues` that applies to its Jobs."""
    queued: bool = True
    """Whether its Jobs wait in that queue. Those that free resources, or hold up a verdict, do not."""
    devices: Literal["none", "needed", "all"] = "none"
    """Devices per pod: `all` is the number that the run requests, `needed` is one if it holds the model."""
    multi_node: bool = False
    """Whether it has one pod on each of the run's nodes. Such a pod serves metrics."""
    time_limit: bool = False
    """Whether `maxRunSeconds` of the run and `limits.runSeconds` of the profile limit its running time."""
    grace_seconds: int | None = None
    """Seconds from SIGTERM to SIGKILL. None: the cluster's default."""
    profile: ProfileField = "compute"
    """Block of the run's spec that names its ComputeProfile."""
    confirm_absent: bool = False
    """Whether the operator confirms with a GET that its Job is absent before it creates the Job."""
    binds_config: bool = True
    """Whether its result repeats the digest of its config. Collect returns the result of another one."""
    per_champion: bool = False
    """Whether a run that compares with the champion of its model line has one Job per champion."""
    stores_result: bool = True
    """Whether its result is in the store too. If not, it runs again when its pod is gone."""
    isolated: bool = False
    """Whether it runs code of a user: a NetworkPolicy denies its connections, and it mounts no store."""
    serves_deletion: bool = False
    """Whether it works for an owner that is being deleted. Its Job does not delay that deletion."""

    @property
    def uses_devices(self) -> bool:
        return self.devices != "none"

    def devices_of(self, requested: int, *, one_holds_model: bool = True) -> int:
        """Devices per pod in a run that requests this many."""
        return {"none": 0, "needed": 1 if one_holds_model else requested, "all": requested}[self.devices]


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
        time_limit=True,
        # Time to finish a step and save the resume state.
        grace_seconds=120,
        # A second Job by mistake would hold all devices twice.
        confirm_absent=True,
    ),
    "evaluate": StageRow(
        resources=PodResources(cpu="1", memory="4Gi"),
        running=Reason.EVALUATING,
        condition=ConditionType.EVALUATED,
        queue="evaluate",
        devices="needed",
        profile="evaluation",
        per_champion=True,
    ),
    "score": StageRow(
        # The function of the user may use 2 GiB.
        resources=PodResources(cpu="500m", memory="2560Mi"),
        running=Reason.SCORING,
        condition=ConditionType.EVALUATED,
        queue="evaluate",
        profile="evaluation",
        per_champion=True,
        stores_result=False,
        isolated=True,
    ),
    "analyze": StageRow(
        resources=PodResources(cpu="100m", memory="384Mi"),
        queued=False,
        stores_result=False,
    ),
    "collect": StageRow(resources=PodResources(cpu="50m", memory="256Mi"), queued=False, binds_config=False),
    "cleanup": StageRow(
        resources=PodResources(cpu="50m", memory="256Mi"),
        queued=False,
        backoff_limit=0,
        serves_deletion=True,
    ),
    "download": StageRow(resources=PodResources(cpu="500m", memory="1Gi"), backoff_limit=3),
    "merge": StageRow(resources=PodResources(cpu="1", memory="8Gi"), backoff_limit=1),
    "fill": StageRow(resources=PodResources(cpu="500m", memory="512Mi"), backoff_limit=3),
}


SERVE_PODS: Final[frozenset[PodStage]] = frozenset({"serve"})
"""Name of the pods of endpoints in the entries of a profile's `pods`."""
TRAIN_PODS: Final[frozenset[PodStage]] = frozenset({"train"})
"""Name of the pods that train there."""


def pod_names(stage: JobStage) -> frozenset[PodStage]:
    """Names of a stage's pods in the entries of a profile's `pods`: of their kind, and of the stage."""
    row = STAGES[stage]
    kind: PodStage = row.queue if row.uses_devices else "cpu"
    return frozenset({kind, *(name for name in SIZED_STAGES if name == stage)})


def select_stages(profile: ProfileField) -> tuple[JobStage, ...]:
    """The stages with a result whose pods have the ComputeProfile of this block of the spec."""
    return tuple(stage for stage, row in STAGES.items() if row.profile == profile and row.running is not None)


def find_row(stage: str | None) -> StageRow | None:
    """The row of the stage that a label names; None for another text, such as an endpoint's."""
    return next((row for name, row in STAGES.items() if name == stage), None)
