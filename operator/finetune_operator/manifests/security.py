"""What Pod Security `restricted` asks for, and a read-only root: the same for all pods of users."""

from typing import Final

from finetune_operator.manifests.labels import RUNNER
from finetune_operator.plan import Manifest

USER: Final = 65532
"""uid, gid and fsGroup of every pod."""


def pod_security() -> Manifest:
    """Identity and rights of a pod: the fixed service account without a token, and no root."""
    return {
        "serviceAccountName": RUNNER,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def container_security() -> Manifest:
    """Rights of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
