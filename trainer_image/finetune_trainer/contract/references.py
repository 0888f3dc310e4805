# SPDX-License-Identifier: Apache-2.0
"""References in messages: to the owner, the store, its artifacts, and Secrets."""

from typing import Literal

from finetune_trainer.contract.base import Contract, Digest, PodPath
from finetune_trainer.contract.environment import STORE_MOUNT
from finetune_trainer.contract.vocabulary import CheckpointType


def strip_query(uri: str) -> str:
    """The URI of a source as records and messages have it.

    The query of a web address is left out, because it may be a signature and so a credential.
    """
    return uri.partition("?")[0] if uri.startswith("https://") else uri


class Owner(Contract):
    """The custom resource that a pod works for."""

    kind: Literal[
        "FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "Evaluation", "InferenceDeployment"
    ]
    namespace: str
    name: str
    uid: str


class ReportTarget(Contract):
    """Where to send progress. The token is read from `REPORT_TOKEN_PATH` for every request."""

    url: str
    ca_pem: str


class SecretMount(Contract):
    """Mount path of a Secret with credentials. Its name is for messages."""

    name: str
    path: PodPath


class StoreConfig(Contract):
    """The store: its URI for records, and its mount path.

    Layout: `datasets/<digest>/`, `models/<digest>/`, `checkpoints/<digest>/`, `runs/<uid>/<stage>/`,
    with the digest's 64 hexadecimal digits as the folder's name.
    """

    uri: str
    path: PodPath = STORE_MOUNT
    """Mount path of the store; for a bucket, the pod's own folder for what it reads and writes."""
    credentials: SecretMount | None = None


class ImageVolume(Contract):
    """An OCI image that the pod mounts read-only. Its reference is for messages."""

    reference: str
    path: PodPath


class ArtifactRef(Contract):
    """A complete folder in the store."""

    kind: Literal["datasets", "models", "checkpoints"]
    digest: Digest


class ParentCheckpoint(Contract):
    """The Checkpoint that a run continues from. Its name is for messages."""

    name: str
    digest: Digest
    type: CheckpointType = "Adapter"
