"""What a reconciler may look at besides its own object."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.plan import Manifest
from finetune_trainer.contract import Progress, ReportTarget, Stage


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """What the process knows and manifests need."""

    namespace: str
    trainer_image: str
    image_pull_policy: str = "IfNotPresent"
    report: ReportTarget | None = None
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


class CheckpointIndex:
    """The Checkpoints of one namespace by name, by run and by model line; kept up to date one by one."""

    def __init__(self, checkpoints: Iterable[Checkpoint] = ()) -> None:
        self._by_name: dict[str, Checkpoint] = {}
        self._by_run: dict[str, dict[str, Checkpoint]] = {}
        self._by_model: dict[str, dict[str, Checkpoint]] = {}
        for checkpoint in checkpoints:
            self.put(checkpoint)

    def put(self, checkpoint: Checkpoint) -> None:
        self.remove(checkpoint.name)
        self._by_name[checkpoint.name] = checkpoint
        self._by_run.setdefault(checkpoint.spec.lineage.job.uid, {})[checkpoint.name] = checkpoint
        self._by_model.setdefault(checkpoint.spec.model, {})[checkpoint.name] = checkpoint

    def remove(self, name: str) -> None:
        old = self._by_name.pop(name, None)
        if old is not None:
            for index, key in ((self._by_run, old.spec.lineage.job.uid), (self._by_model, old.spec.model)):
                index[key].pop(name)
                if not index[key]:
                    del index[key]

    def __iter__(self) -> Iterator[Checkpoint]:
        return iter(tuple(self._by_name.values()))

    def get(self, name: str) -> Checkpoint | None:
        return self._by_name.get(name)

    def of_run(self, uid: str) -> tuple[Checkpoint, ...]:
        """Checkpoints that the FineTuneJob with this uid made."""
        return tuple(self._by_run.get(uid, {}).values())

    def of_model(self, model: str) -> tuple[Checkpoint, ...]:
        """Checkpoints of this model line."""
        return tuple(self._by_model.get(model, {}).values())


@dataclass(frozen=True, slots=True)
class World:
    """The object's surroundings, restricted to its namespace; mappings are keyed by name.

    `jobs`, `pods`, `deployments`, `services`, `network_policies` and `disruption_budgets` hold only children:
    objects that carry our labels and whose controller (for pods: whose Job's or Deployment's controller) is
    the object, by uid.
    """

    now: datetime
    facts: OperatorFacts
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
    inferencedeployments: Mapping[str, InferenceDeployment] = field(default_factory=dict)
    endpoints_everywhere: Sequence[InferenceDeployment] = ()
    """The InferenceDeployments of all namespaces: for an endpoint, because profiles have no namespace, and
    for what is being deleted, because weights in a bucket have none either."""
    runs_everywhere: Sequence[FineTuneJob] = ()
    """For a record that is being deleted: the FineTuneJobs of all namespaces."""
    profiles: Mapping[str, ComputeProfile] = field(default_factory=dict)
    progress: RunProgress | None = None
    same_content: tuple[Checkpoint | DatasetVersion, ...] = ()
    """Of a record that is being deleted: the other records of its kind and digest, in any namespace."""
    namespace_terminating: bool = False
    """Of what is being deleted and has our finalizer: whether its whole namespace is."""
