# SPDX-License-Identifier: Apache-2.0
"""Volumes of an endpoint's pods: the store of its models, API keys and temporary files."""

from finetune_operator.manifests.credentialmounts import secret_volume
from finetune_operator.manifests.locations import parse_store
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import API_KEYS_MOUNT, STORE_MOUNT
from finetune_trainer.contract.references import StoreConfig


def scratch_volume(limit: str) -> Manifest:
    """Volume of temporary files. Without a limit, it could fill the node's disk.

    Models have another volume, limited by `ephemeralStorage` of the resources for `serve`.
    """
    return {"name": "scratch", "emptyDir": {"sizeLimit": limit}}


def memory_volume(size: str | None) -> tuple[list[Manifest], list[Manifest]]:
    """Volume and mount of /dev/shm with this size; none for that of the container runtime."""
    if size is None:
        return [], []
    return (
        [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}],
        [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108 - a volume of the pod
    )


def store_volume(store: StoreConfig) -> tuple[list[Manifest], list[Manifest]]:
    """Volumes and mounts of the store for the init container; a bucket needs only credentials."""
    volumes: list[Manifest] = []
    mounts: list[Manifest] = []
    claim = parse_store(store.uri)
    if claim is not None:
        volumes.append(
            {"name": "store", "persistentVolumeClaim": {"claimName": claim.name, "readOnly": True}}
        )
        mounts.append({"name": "store", "mountPath": STORE_MOUNT, "readOnly": True})
    if store.credentials is not None:
        volume, mount = secret_volume(store.credentials)
        volumes.append(volume)
        mounts.append(mount)
    return volumes, mounts


def key_volume(secret: str | None) -> tuple[list[Manifest], list[Manifest]]:
    """Volume and mount of the API keys. The volume is not optional: the pod waits until the Secret exists."""
    if secret is None:
        return [], []
    return (
        [{"name": "api-keys", "secret": {"secretName": secret}}],
        [{"name": "api-keys", "mountPath": API_KEYS_MOUNT, "readOnly": True}],
    )
