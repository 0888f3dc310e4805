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
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.lines import CheckpointIndex
from finetune_trainer.contract.objects import ReportTarget
from finetune_trainer.contract.progress import Progress
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
    """The object's surroundings, restricted to its namespace; mappings are keyed by name.

    `jobs`, `pods`, `deployments`, `services`, `network_policies` and `disruption_budgets` hold only children:
    objects that carry our labels and whose controller (for pods: whose Job's or Deployment's controller) is
    the object, by uid.
    """

    now: datetime
    facts: OperatorFacts
    entropy: bytes = b""
    """Random bytes of this pass alone, 32 of them, for keys."""
    jobs: Mapping[str, Manifest] = field(default_factory=dict)
    pods: Mapping[str, Manifest] = field(default_factory=dict)
    orphans: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    """Pods that carry the object's labels and name as their controller a Job that is not among `jobs`, by
    that Job's name. Anybody may make such a pod: it may hold its object up, and is believed nothing else."""
    deployments: Mapping[str, Manifest] = field(default_factory=dict)
    services: Mapping[str, Manifest] = field(default_factory=dict)
    network_policies: Mapping[str, Manifest] = field(default_factory=dict)
    disruption_budgets: Mapping[str, Manifest] = field(default_factory=dict)
    claims: Mapping[str, Manifest | None] = field(default_factory=dict)
    """PersistentVolumeClaims that the kind's `claims` function named; None where one is missing."""
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
    namespace_terminating: bool = False
    """Of what is being deleted and has our finalizer: whether its whole namespace is."""
