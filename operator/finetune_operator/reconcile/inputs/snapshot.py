"""What a reconciler may look at besides its own object."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.engine.resources import NAMESPACE, ResourceType
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.secondaries import Children, LookedUp, no_children
from finetune_operator.reconcile.lines.checkpointindex import CheckpointIndex
from finetune_trainer.contract.progress import Progress
from finetune_trainer.contract.references import ReportTarget
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """What the process knows and manifests need."""

    namespace: str
    trainer_image: str
    image_pull_policy: str = "IfNotPresent"
    report: ReportTarget | None = None
    trainer_image_floor: str = ""
    """Version below which a serving image is reported as too old; empty: none is."""
    monitoring_namespace: Mapping[str, str] = field(default_factory=dict)
    """Labels of the namespaces whose pods may read the metrics of pods behind a NetworkPolicy; none: all."""
    nonce_key: str = ""
    """Random text of this process, from which each Job's nonce is made; empty: Jobs have none."""
    unlisted: tuple[str, ...] = ()
    """Watched namespaces that may not be listed: what is in them is not known."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The newest report of a running stage."""

    stage: Stage
    progress: Progress


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a pass over one object decides by, restricted to its namespace; mappings are keyed by name."""

    now: datetime
    facts: OperatorFacts
    entropy: bytes = b""
    """Random bytes of this pass alone, 32 of them, for keys."""
    children: Children = field(default_factory=no_children)
    """By type, each of `secondaries.SECONDARIES`: objects that carry our labels and whose controller (for
    pods: whose Job's or Deployment's controller) is the object, by uid."""
    orphans: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    """Pods that carry the object's labels and name as their controller a Job that is not among `children`, by
    that Job's name. Anybody may make such a pod: it may hold its object up, and is believed nothing else."""
    looked_up: LookedUp = field(default_factory=dict)
    """By type: objects that the kind's `needs` function named; None where one is missing."""
    service_accounts: frozenset[str] = frozenset()
    finetunejobs: Mapping[str, FineTuneJob] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    datasetversions: Mapping[str, DatasetVersion] = field(default_factory=dict)
    checkpoints: CheckpointIndex = field(default_factory=CheckpointIndex)
    versions_made_by: Callable[[str], Iterable[DatasetVersion]] = lambda _: ()
    """DatasetVersions, by `indexes.version_owner` of a Dataset or run."""
    runs_with: Callable[[str], Iterable[FineTuneJob]] = lambda _: ()
    """FineTuneJobs of all namespaces that may need a content (`indexes.contents`); too many do no harm."""
    endpoints_with: Callable[[str], Iterable[InferenceDeployment]] = lambda _: ()
    """InferenceDeployments, likewise: weights in a bucket have no namespace."""
    rolling_everywhere: Iterable[InferenceDeployment] = ()
    """InferenceDeployments of all namespaces with a revision that starts: profiles have no namespace."""
    profiles: Mapping[str, ComputeProfile] = field(default_factory=dict)
    progress: RunProgress | None = None
    same_content: tuple[Checkpoint | DatasetVersion, ...] = ()
    """Of a record that is being deleted: the other records of its kind and digest, in any namespace."""
    newer: int = 0
    """Of a record: how many newer ones there are of its model line, or of its Dataset."""

    def find(self, type_: ResourceType, name: str) -> Manifest | None:
        """The object that was looked up; None where it is missing, and where it was not needed."""
        return self.looked_up.get(type_, {}).get(name)

    def is_missing(self, type_: ResourceType, name: str) -> bool:
        """Whether the object was looked up and does not exist."""
        found = self.looked_up.get(type_, {})
        return name in found and found[name] is None

    @property
    def is_namespace_terminating(self) -> bool:
        """Of what is being deleted and has our finalizer: whether its whole namespace is going, or gone."""
        return any(map(is_terminating, self.looked_up.get(NAMESPACE, {}).values()))


def is_terminating(namespace: Manifest | None) -> bool:
    """Whether a namespace is being deleted, or gone: nothing can be created in it any more."""
    return namespace is None or "deletionTimestamp" in namespace["metadata"]
