# SPDX-License-Identifier: Apache-2.0
"""The labels of children, and annotations and deterministic names of everything the operator creates."""

import hashlib
from typing import Final

from finetune_operator.api.labels import MANAGED_BY, OPERATOR, OWNER_KIND, OWNER_NAME, RUN
from finetune_operator.api.meta import GROUP, Resource
from finetune_trainer.contract.vocabulary import Stage

PROFILE_DIGEST: Final = f"{GROUP}/profile-digest"
"""Annotation of a Job or Deployment: digest of what shapes pods in its ComputeProfile."""
TEMPLATE_DIGEST: Final = f"{GROUP}/template-digest"
"""Annotation of a Job or Deployment: digest of the pod template that the operator wrote."""
IMAGES: Final = f"{GROUP}/images"
"""Annotation of a Job or Deployment: images that the operator wrote, sorted and separated by commas."""
DEVICES: Final = f"{GROUP}/devices"
"""Number of devices of a pod. Device time is computed from it, since the profile may have changed."""
STORE: Final = f"{GROUP}/store"
"""Annotation: the store that a Job uses, or that a DatasetVersion was first written to."""
STORE_CREDENTIALS: Final = f"{GROUP}/store-credentials"
"""Annotation of a Job or record: Secret with the credentials of its store. Users may change it on a
record."""
RECORDED_RUN: Final = f"{GROUP}/recorded-run"
"""Annotation of a FineTuneJob with recorded Checkpoints: identity of the run, which survives a restore."""
RECORDED_AT: Final = f"{GROUP}/recorded-at"
"""Annotation of a Checkpoint: time of its first creation. A restore changes the creation timestamp."""
NEVER_PROMOTED: Final = f"{GROUP}/never-promoted"
"""Annotation of a Checkpoint: "true" if its run has `promotion.mode: Never`. The record outlives the run."""
KEY: Final = f"{GROUP}/key"
"""Annotation of a FineTuneJob that the operator made: why. The name ends with a hash of it."""
RUN_REQUESTED: Final = f"{GROUP}/run-requested"
"""Annotation of a FineTuneSchedule: each new value requests a run."""
REFRESH_REQUESTED: Final = f"{GROUP}/refresh-requested"
"""Annotation of a Dataset: each new value requests a check of its source. On the Job: the value that it
answers."""
NONCE: Final = f"{GROUP}/nonce"
"""Annotation of a Job: nonce that a result of its pods must repeat. Jobs that run no stage have none."""
CONFIG_DIGEST: Final = f"{GROUP}/config-digest"
"""Annotation of a Job: digest of its config, which a result of its pods must repeat too."""
CREATED_SPEC: Final = f"{GROUP}/created-spec"
"""Annotation of a revision's Deployment: its spec at creation, without the replicas, as JSON."""
BASE_MODEL_JOB: Final = f"{GROUP}/base-model-job"
"""Annotation of a revision's Deployment: the Job that stored its base model, if it has no Checkpoint."""
WEIGHTS: Final = f"{GROUP}/weights"
"""Annotation of the Service of several revisions: percent of the requests by revision, as JSON."""
CORRECTED: Final = f"{GROUP}/corrected-generation"
"""Annotation of a Deployment: its generation when the operator last reverted changes by others."""
INSTALLATION: Final = f"{GROUP}/installation"
"""Label of a ClusterRoleBinding of each installation of the operator."""
INSTALLATION_LEASE: Final = f"{GROUP}/lease"
"""Annotation of such a ClusterRoleBinding: Lease of the installation, as `namespace/name`."""
WATCHED: Final = f"{GROUP}/watched-namespaces"
"""Annotation of such a ClusterRoleBinding: watched namespaces, separated by commas, or `*`."""
LABEL_VALUE_LIMIT: Final = 63
"""Max characters of a label value. Kubernetes copies the name of a Job into a label of its pods."""
FINALIZER: Final = f"{GROUP}/cleanup"
"""Finalizer of objects with `deletionPolicy: Delete`: their content is deleted before they are."""

RUNNER: Final = "finetune-runner"
"""Service account of the pods in the users' namespaces, except those of isolated stages."""
ISOLATED: Final = "finetune-isolated"
"""Service account of pods that run code of a user. It must not have workload identity."""


def short_hash(*parts: str, length: int = 5) -> str:
    """Hexadecimal digits of a hash of the parts. For names, not for integrity."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def child_labels(owner: Resource, **more: str) -> dict[str, str]:
    """Labels that identify the owner of a child. `more` are further full label keys with their values."""
    return {
        MANAGED_BY: OPERATOR,
        OWNER_KIND: owner.kind,
        OWNER_NAME: _cut(owner.name, LABEL_VALUE_LIMIT),
        RUN: owner.uid,
        **more,
    }


def store_annotations(store: str | None, secret: str | None) -> dict[str, str]:
    """Annotations of the store that content is in, and of the Secret with its credentials."""
    marks = {STORE: store, STORE_CREDENTIALS: secret}
    return {key: value for key, value in marks.items() if value}


def stage_object_name(owner: Resource, stage: str) -> str:
    """`<stage>-<owner>-<5 hex>`: name of the objects of a stage beside its Jobs.

    It begins with a letter, as the name of a Service must.
    """
    return f"{stage}-{owner.name}-{short_hash(owner.uid, stage)}"


def stage_job_name(owner: Resource, stage: Stage | str, *distinguish: str) -> str:
    """`<owner>-<stage>-<5 hex>`: equal for the same object and stage, different for a re-created object.

    If that is too long for the name of a Job, as for most records, the owner is cut, and 12 digits follow.
    """
    name = f"{owner.name}-{stage}-{short_hash(owner.uid, stage, *distinguish)}"
    if len(name) <= LABEL_VALUE_LIMIT:
        return name
    ending = f"-{stage}-{short_hash(owner.uid, stage, *distinguish, length=12)}"
    return _cut(owner.name, LABEL_VALUE_LIMIT - len(ending)) + ending


def _cut(name: str, length: int) -> str:
    """The beginning of a name, itself a name and a label value."""
    return name[:length].rstrip("-.")


def dataset_version_name(dataset: str, digest: str) -> str:
    """`<dataset>-<12 hex>`."""
    return f"{dataset}-{digest.removeprefix('sha256:')[:12]}"


def own_version_name(job: str, digest: str) -> str:
    """`<job>-data-<12 hex>`."""
    return f"{job}-data-{digest.removeprefix('sha256:')[:12]}"


def checkpoint_name(job: str, uid: str, step: int, digest: str) -> str:
    """`<job>-<uid5>-<step>-<8 hex>`."""
    return f"{job}-{uid[:5]}-{step}-{digest.removeprefix('sha256:')[:8]}"


def revision_name(endpoint: str, *inputs: str) -> str:
    """`<endpoint>-<8 hex>`: by the inputs that users of the endpoint can distinguish."""
    return f"{endpoint}-{short_hash(*inputs, length=8)}"
