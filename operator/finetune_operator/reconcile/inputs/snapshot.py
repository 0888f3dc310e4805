# SPDX-License-Identifier: Apache-2.0
"""The objects that a pass may read in addition to its own."""

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import EVENT, NAMESPACE, PENDING_WORKLOADS, WORKLOAD, ResourceType
from finetune_operator.manifests.jobs import JobInputs
from finetune_operator.manifests.pod_security import AccountSettings
from finetune_operator.observe.admission import Admission, Positions
from finetune_operator.observe.device_usage import PodUse
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.device_use import DeviceJob, LineOnProfile, SimilarRuns
from finetune_operator.reconcile.inputs.related_types import Children, LookedUp, no_children
from finetune_operator.reconcile.model_lines import CheckpointIndex
from finetune_trainer.contract.references import ReportTarget
from finetune_trainer.contract.results import Progress
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """Settings of the process that manifests need."""

    namespace: str
    trainer_image: str
    nonce_key: str
    """Random text of this process, from which the nonce of each stage's Job is derived."""
    image_pull_policy: str = "IfNotPresent"
    accounts: AccountSettings = field(default_factory=AccountSettings)
    report: ReportTarget | None = None
    trainer_image_floor: str = ""
    """Version below which a serving image is reported as too old; empty: no check."""
    monitoring_namespace: Mapping[str, str] = field(default_factory=dict)
    """Labels of the namespaces that may read metrics of pods with a NetworkPolicy; empty: all namespaces."""
    unlisted: tuple[str, ...] = ()
    """Watched namespaces that the operator is not allowed to list, so their objects are unknown."""

    def job_inputs(self, image: str, profile: ComputeProfile | None) -> JobInputs:
        """Inputs of a Job with one pod and without devices."""
        return JobInputs(
            image=image,
            image_pull_policy=self.image_pull_policy,
            nonce_key=self.nonce_key,
            profile=profile,
        )


@dataclass(frozen=True, slots=True)
class RunProgress:
    """The newest progress report of a running stage."""

    stage: Stage
    progress: Progress
    pod: str = ""
    """uid of the pod that reported it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The input of one pass. Objects are of the namespace of the reconciled object; mappings are by name."""

    now: datetime
    facts: OperatorFacts
    entropy: bytes = b""
    """32 random bytes, new in each pass, for keys."""
    children: Children = field(default_factory=no_children)
    """Children by type and name, with an entry for each type of `related_types.RELATED_TYPES`.

    A child has our labels, and its controller is the object, by uid. For a pod, the object is the controller
    of its Job or Deployment.
    """
    orphans: Mapping[str, tuple[Manifest, ...]] = field(default_factory=dict)
    """Pods with the object's labels and a Job as controller that is not among `children`, by the Job's name.

    Anyone can create such a pod. It can delay the object, and has no other effect.
    """
    looked_up: LookedUp = field(default_factory=dict)
    """By type and name, the objects that the kind's `needs` named; None if an object does not exist."""
    service_accounts: frozenset[str] = frozenset()
    finetunejobs: Mapping[str, FineTuneJob] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    datasetversions: Mapping[str, DatasetVersion] = field(default_factory=dict)
    checkpoints: CheckpointIndex = field(default_factory=CheckpointIndex)
    versions_made_by: Callable[[str], Iterable[DatasetVersion]] = lambda _: ()
    """Returns DatasetVersions by `indexes.version_owner` of a Dataset or run."""
    runs_with: Callable[[str], Iterable[FineTuneJob]] = lambda _: ()
    """Returns the FineTuneJobs of all namespaces that may need a content (`indexes.contents`)."""
    evaluations_with: Callable[[str], Iterable[Evaluation]] = lambda _: ()
    """Returns unfinished Evaluations in the same way."""
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    measurements_of: Callable[[str], Iterable[tuple[str, datetime]]] = lambda _: ()
    """Returns names and last times of measurement of the Evaluations with scores that name a Checkpoint.

    By the Checkpoint's `indexes.address`. An Evaluation is not unpacked for it.
    """
    followers_of: Callable[[str], Iterable[InferenceDeployment]] = lambda _: ()
    """Returns the InferenceDeployments that follow a model line, by its `indexes.address`."""
    endpoints_with: Callable[[str], Iterable[InferenceDeployment]] = lambda _: ()
    """Returns InferenceDeployments in the same way, because weights in a bucket have no namespace."""
    rolling_everywhere: Iterable[InferenceDeployment] = ()
    """InferenceDeployments of all namespaces with a starting revision, because profiles have no namespace."""
    queued_everywhere: Callable[[], Iterable[InferenceDeployment]] = tuple
    """Returns the InferenceDeployments of all namespaces with the reason Queued, in the same way."""
    partly_scheduled_everywhere: Iterable[FineTuneJob] = ()
    """FineTuneJobs of all namespaces with several pods of which no node can take one."""
    profiles: Mapping[str, ComputeProfile] = field(default_factory=dict)
    calibrated_mfu: Callable[[SimilarRuns], float | None] = lambda _: None
    """Returns the median model FLOPs utilization of the last similar runs in all namespaces."""
    peak_bytes: Callable[[LineOnProfile], Iterable[float]] = lambda _: ()
    """Returns peaks of device memory in the last runs of a model line with a profile, oldest first."""
    device_use: Callable[[str], Iterable[PodUse]] = lambda _: ()
    """Returns the use of a profile's devices by pods of all namespaces, also by pods deleted just now."""
    jobs_of_others: Callable[[str], Iterable[DeviceJob]] = lambda _: ()
    """Returns the Jobs of the namespace with devices of a profile that have not ended, the oldest first.

    Those of the object itself are left out.
    """
    is_first_in_line: Callable[[str], bool] = lambda _: True
    """Returns whether no older object of the namespace waits for the budget of a profile."""
    progress: RunProgress | None = None
    same_content: tuple[Checkpoint | DatasetVersion, ...] = ()
    """For a terminating record: the other records of its kind and digest in any namespace."""
    newer: Callable[[], int] = lambda: 0
    """For a record: returns the number of newer records of its model line or Dataset."""

    def find(self, type_: ResourceType, name: str) -> Manifest | None:
        """The object that was looked up; None if it does not exist or was not requested."""
        return self.looked_up.get(type_, {}).get(name)

    def is_missing(self, type_: ResourceType, name: str) -> bool:
        """Whether the object was looked up and does not exist."""
        found = self.looked_up.get(type_, {})
        return name in found and found[name] is None

    def admission_of(self, job: Manifest) -> Admission:
        """What keeps the Job without pods."""
        uid = job["metadata"]["uid"]
        return Admission(self.find(WORKLOAD, uid), self.positions.get(uid), self.find(EVENT, uid))

    @property
    def positions(self) -> Positions:
        """Positions of the object's Jobs and pods that wait in a queue, as far as they are known."""
        queues = self.looked_up.get(PENDING_WORKLOADS, {}).values()
        return ChainMap(*(queue["positions"] for queue in queues if queue is not None))

    def group_column(self, version: str | None) -> str | None:
        """Column whose rows are together in one split of a DatasetVersion; None if rows are independent."""
        record = self.datasetversions.get(version or "")
        return None if record is None else record.spec.group_by

    def namespace_labels(self, name: str) -> Mapping[str, str] | None:
        """Labels of the namespace of this name; None if it was not looked up, or cannot be read."""
        found = self.find(NAMESPACE, name)
        if found is None or is_refusal(found):
            return None
        labels: Mapping[str, str] = found["metadata"].get("labels") or {}
        return labels

    @property
    def is_namespace_terminating(self) -> bool:
        """For a terminating object with our finalizer: whether its namespace is terminating or gone."""
        return any(map(is_terminating, self.looked_up.get(NAMESPACE, {}).values()))


def is_terminating(namespace: Manifest | None) -> bool:
    """Whether a namespace is terminating or gone, so that nothing can be created in it."""
    return namespace is None or "deletionTimestamp" in namespace["metadata"]


def run_of(checkpoint: Checkpoint, snapshot: Snapshot) -> FineTuneJob | None:
    """The FineTuneJob that made the Checkpoint, if it still exists."""
    record = checkpoint.spec.lineage.job
    job = snapshot.finetunejobs.get(record.name)
    return job if job is not None and job.uid == record.uid else None
