# SPDX-License-Identifier: Apache-2.0
"""Mounts of Secrets with credentials: each is a folder in the pod, with one file per key."""

from typing import Literal

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import CREDENTIALS_MOUNT
from finetune_trainer.contract.references import SecretMount

Use = Literal["store", "source", "base-model", "judge", "prometheus"]
"""Purpose of a Secret in a pod."""


def secret_mount(use: Use, secret: str | None, number: int | None = None) -> SecretMount | None:
    """Path of the Secret in the container; None without a Secret.

    Args:
        use: purpose of the Secret.
        secret: its name.
        number: number of the source or judge, which has no name or one that can be too long for a volume.
    """
    folder = use if number is None else f"{use}-{number}"
    return None if secret is None else SecretMount(name=secret, path=f"{CREDENTIALS_MOUNT}/{folder}")


def secret_volume(mount: SecretMount) -> tuple[Manifest, Manifest]:
    """The volume, and its mount in a container.

    The volume is optional: the pod starts without the Secret, and its result reports that it is missing.
    """
    name = f"{mount.path.rpartition('/')[2]}-credentials"
    volume = {"name": name, "secret": {"secretName": mount.name, "optional": True}}
    return volume, {"name": name, "mountPath": mount.path, "readOnly": True}
