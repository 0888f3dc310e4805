# SPDX-License-Identifier: Apache-2.0
"""Security settings of all pods in users' namespaces: Pod Security `restricted`, and a read-only root."""

from typing import Final

from finetune_operator.manifests.labels import RUNNER
from finetune_operator.plan import Manifest

USER: Final = 65532
"""uid, gid and fsGroup of all pods."""


def pod_security(account: str = RUNNER) -> Manifest:
    """Security settings of a pod: a service account without a token, and no root."""
    return {
        "serviceAccountName": account,
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
    """Security settings of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
