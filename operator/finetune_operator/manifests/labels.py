"""Labels, annotations and deterministic names of everything the operator creates."""

import hashlib
from typing import Final

from finetune_operator.api.meta import GROUP, Resource
from finetune_trainer.contract.vocabulary import Stage

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OPERATOR: Final = "finetune-operator"
SELECTOR: Final = f"{MANAGED_BY}={OPERATOR}"
"""Selects every child; the informers watch nothing else."""

OWNER_KIND: Final = f"{GROUP}/owner-kind"
OWNER_NAME: Final = f"{GROUP}/owner-name"
RUN: Final = f"{GROUP}/run"
"""uid of the FineTuneJob or Dataset a pod or record belongs to."""
STAGE: Final = f"{GROUP}/stage"
MODEL: Final = f"{GROUP}/model"
DATASET: Final = f"{GROUP}/dataset"
REVISION: Final = f"{GROUP}/revision"
PROFILE: Final = f"{GROUP}/profile"
DEVICES: Final = f"{GROUP}/devices"
"""Devices that a stage's pod was given; device time is counted from it, not from a profile edited since."""
STORE: Final = f"{GROUP}/store"
"""Annotation: the store that a Job works with, or that a DatasetVersion was first written to."""
STORE_CREDENTIALS: Final = f"{GROUP}/store-credentials"
"""Annotation of a Job or record: the Secret that opens its store. On a record a person may change it."""
RECORDED_RUN: Final = f"{GROUP}/recorded-run"
"""Annotation of a FineTuneJob whose Checkpoints are recorded: which run it stands for, restored or not."""
RECORDED_AT: Final = f"{GROUP}/recorded-at"
"""Annotation of a Checkpoint: when it was first recorded; a restore makes the creation time anew."""
REFRESH_REQUESTED: Final = f"{GROUP}/refresh-requested"
"""Annotation of a Dataset: each new value asks for a look at its source. Of its Job: the value it answers."""
NONCE: Final = f"{GROUP}/nonce"
"""Annotation of a Job: what a result of its pods must repeat. Jobs of contract 1 have none."""
CONFIG_DIGEST: Final = f"{GROUP}/config-digest"
"""Annotation of a Job: the digest of its config, which a result of its pods must repeat as well."""
CREATED_SPEC: Final = f"{GROUP}/created-spec"
"""Annotation of a revision's Deployment: its spec as it was created, without the replicas, as JSON."""
CORRECTED: Final = f"{GROUP}/corrected-generation"
"""Annotation of a Deployment: its generation when what others had changed was last put back."""
INSTALLATION: Final = f"{GROUP}/installation"
"""Label of the Lease of each installation of the operator."""
WATCHED: Final = f"{GROUP}/watched-namespaces"
"""Annotation of such a Lease: namespaces with commas between them, or `*`."""
FINALIZER: Final = f"{GROUP}/cleanup"
"""On what has `deletionPolicy: Delete`: before it goes, what it stands for is removed."""

RUNNER: Final = "finetune-runner"
"""Service account of all pods in the users' namespaces."""


def short_hash(*parts: str, length: int = 5) -> str:
    """Hexadecimal digits that tell equal inputs from different ones; for names, not for integrity."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def child_labels(owner: Resource, **more: str) -> dict[str, str]:
    """Labels that lead from a child back to its owner; `more` are full label keys with their values."""
    return {
        MANAGED_BY: OPERATOR,
        OWNER_KIND: owner.kind,
        OWNER_NAME: owner.name,
        RUN: owner.uid,
        **more,
    }


def store_annotations(store: str | None, secret: str | None) -> dict[str, str]:
    """Where something was made, and which Secret opens it there."""
    marks = {STORE: store, STORE_CREDENTIALS: secret}
    return {key: value for key, value in marks.items() if value}


def stage_job_name(owner: Resource, stage: Stage | str, *distinguish: str) -> str:
    """`<owner>-<stage>-<5 hex>`: the same for the same object and stage, other for a re-created object."""
    return f"{owner.name}-{stage}-{short_hash(owner.uid, stage, *distinguish)}"


def dataset_version_name(dataset: str, digest: str) -> str:
    """`<dataset>-<12 hex>`."""
    return f"{dataset}-{digest.removeprefix('sha256:')[:12]}"


def inline_version_name(job: str, digest: str) -> str:
    """`<job>-data-<12 hex>`."""
    return f"{job}-data-{digest.removeprefix('sha256:')[:12]}"


def checkpoint_name(job: str, uid: str, step: int, digest: str) -> str:
    """`<job>-<uid5>-<step>-<8 hex>`."""
    return f"{job}-{uid[:5]}-{step}-{digest.removeprefix('sha256:')[:8]}"


def revision_name(endpoint: str, *inputs: str) -> str:
    """`<endpoint>-<8 hex>`: named by what a user of the endpoint can tell apart."""
    return f"{endpoint}-{short_hash(*inputs, length=8)}"
