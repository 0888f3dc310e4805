"""Secrets of type `finetune.dev/credentials` in a pod: each is a folder there, with one file a key."""

from typing import Literal

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import CREDENTIALS_MOUNT
from finetune_trainer.contract.references import SecretMount

Use = Literal["store", "source", "base-model"]
"""What a pod needs a Secret for."""


def secret_mount(use: Use, secret: str | None) -> SecretMount | None:
    """Where the process finds the Secret of this name."""
    return None if secret is None else SecretMount(name=secret, path=f"{CREDENTIALS_MOUNT}/{use}")


def secret_volume(mount: SecretMount) -> tuple[Manifest, Manifest]:
    """The volume, and its mount in a container.

    Optional: the pod starts without the Secret, and reports in its own words that it is missing.
    """
    name = f"{mount.path.rpartition('/')[2]}-credentials"
    volume = {"name": name, "secret": {"secretName": mount.name, "optional": True}}
    return volume, {"name": name, "mountPath": mount.path, "readOnly": True}
