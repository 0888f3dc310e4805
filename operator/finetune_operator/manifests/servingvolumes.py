"""Volumes of an endpoint's pods: where its models come from, its API keys, its temporary files."""

from typing import Final

from finetune_operator.manifests.credentialmounts import secret_volume
from finetune_operator.manifests.locations import parse_store
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import API_KEYS_MOUNT, STORE_MOUNT
from finetune_trainer.contract.references import StoreConfig

SCRATCH_LIMIT: Final = "1Gi"
"""Models have a volume of their own, which `resources.serve.ephemeralStorage` of the profile limits."""


def scratch_volume() -> Manifest:
    """The volume of temporary files; without a limit it could fill its node's disk."""
    return {"name": "scratch", "emptyDir": {"sizeLimit": SCRATCH_LIMIT}}


def store_volume(store: StoreConfig) -> tuple[list[Manifest], list[Manifest]]:
    """What the init container reads the store with: from a bucket it copies straight to the models."""
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
    """The keys' folder. It is not optional: the pod starts once there is such a Secret."""
    if secret is None:
        return [], []
    return (
        [{"name": "api-keys", "secret": {"secretName": secret}}],
        [{"name": "api-keys", "mountPath": API_KEYS_MOUNT, "readOnly": True}],
    )
