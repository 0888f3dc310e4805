# SPDX-License-Identifier: Apache-2.0
"""Mounts of Secrets with credentials: each is a folder in the pod, with one file per key."""

from typing import Final, Literal

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import CREDENTIALS_MOUNT
from finetune_trainer.contract.references import SecretMount

Use = Literal[
    "store",
    "source-0",
    "source-1",
    "source-2",
    "source-3",
    "source-4",
    "source-5",
    "source-6",
    "source-7",
    "base-model",
    "judge-0",
    "judge-1",
    "judge-2",
    "judge-3",
    "prometheus",
]
"""Purpose of a Secret in a pod. Judges have numbers, because a name can be too long for a volume."""
SOURCE_USES: Final[tuple[Use, ...]] = (
    "source-0",
    "source-1",
    "source-2",
    "source-3",
    "source-4",
    "source-5",
    "source-6",
    "source-7",
)
JUDGE_USES: Final[tuple[Use, ...]] = ("judge-0", "judge-1", "judge-2", "judge-3")


def secret_mount(use: Use, secret: str | None) -> SecretMount | None:
    """Path of the Secret in the container; None without a Secret."""
    return None if secret is None else SecretMount(name=secret, path=f"{CREDENTIALS_MOUNT}/{use}")


def secret_volume(mount: SecretMount) -> tuple[Manifest, Manifest]:
    """The volume, and its mount in a container.

    The volume is optional: the pod starts without the Secret, and its result reports that it is missing.
    """
    name = f"{mount.path.rpartition('/')[2]}-credentials"
    volume = {"name": name, "secret": {"secretName": mount.name, "optional": True}}
    return volume, {"name": name, "mountPath": mount.path, "readOnly": True}
