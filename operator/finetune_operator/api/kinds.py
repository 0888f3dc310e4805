# SPDX-License-Identifier: Apache-2.0
"""The kinds in one table: names, scope, columns. The CRD generator, the watches and RBAC read it."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.evaluationresource import Evaluation
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    json_path: str
    type: str = "string"
    wide: bool = False
    """Whether it is shown only with `-o wide`."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One custom resource definition."""

    model: type[Resource]
    plural: str
    short_name: str
    columns: tuple[Column, ...]
    namespaced: bool = True
    scale: bool = False

    @property
    def name(self) -> str:
        return self.model.__name__


AGE: Final = Column("Age", ".metadata.creationTimestamp", "date")

KINDS: Final[tuple[Kind, ...]] = (
    Kind(
        FineTuneJob,
        "finetunejobs",
        "ftj",
        (
            Column("Phase", ".status.phase"),
            Column("Progress", ".status.display.progress"),
            Column("Loss", ".status.display.loss"),
            Column("Score", ".status.display.score"),
            Column("ETA", ".status.display.eta"),
            Column("Predicted", ".status.display.predicted", wide=True),
            Column("Took", ".status.display.took", wide=True),
            Column("Cost", ".status.cost.amount", "number", wide=True),
            AGE,
        ),
    ),
    Kind(
        Dataset,
        "datasets",
        "dset",
        (
            Column("Phase", ".status.phase"),
            Column("Latest", ".status.latestVersion"),
            Column("Rows", ".status.rows", "integer"),
            Column("Problems", ".status.problemCount", "integer"),
            AGE,
        ),
    ),
    Kind(
        DatasetVersion,
        "datasetversions",
        "dsv",
        (
            Column("Dataset", ".spec.dataset"),
            Column("Rows", ".spec.rows", "integer"),
            Column("Digest", ".spec.digest"),
            AGE,
        ),
    ),
    Kind(
        Checkpoint,
        "checkpoints",
        "ckpt",
        (
            Column("Model-Line", ".spec.modelLine"),
            Column("Step", ".spec.step", "integer"),
            Column("Score", ".status.display.score"),
            Column("Promoted", '.status.conditions[?(@.type=="Promoted")].status'),
            Column("In-Use", ".status.display.inUse"),
            Column("Cost", ".spec.cost.amount", "number", wide=True),
            AGE,
        ),
    ),
    Kind(
        Evaluation,
        "evaluations",
        "eval",
        (
            Column("Phase", ".status.phase"),
            Column("Checkpoints", ".status.display.checkpoints"),
            Column("Score", ".status.display.score"),
            Column("Dataset", ".status.resolved.datasetVersion", wide=True),
            AGE,
        ),
    ),
    Kind(
        InferenceDeployment,
        "inferencedeployments",
        "infd",
        (
            Column("Models", ".status.display.models"),
            Column("Revision", ".status.revision"),
            Column("Weight", ".status.display.weight"),
            Column("Verdict", ".status.display.verdict"),
            Column("Ready", ".status.display.ready"),
            Column("URL", ".status.url"),
            Column("Devices", ".status.cost.devices", "integer", wide=True),
            Column("Cost-Per-Hour", ".status.display.costPerHour", wide=True),
            AGE,
        ),
        scale=True,
    ),
    Kind(
        ComputeProfile,
        "computeprofiles",
        "cprof",
        (
            Column("Device", ".spec.accelerator.resource"),
            Column("Max", ".spec.accelerator.maxPerPod", "integer"),
            Column("Engine", ".spec.serving.engine"),
            AGE,
        ),
        namespaced=False,
    ),
)
KINDS_BY_NAME: Final = {kind.name: kind for kind in KINDS}
