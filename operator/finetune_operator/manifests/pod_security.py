# SPDX-License-Identifier: Apache-2.0
"""Identity and rights of pods in users' namespaces: service accounts, and Pod Security `restricted`.

The root file system is read-only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from finetune_operator.api.labels import MANAGED_BY, OPERATOR
from finetune_operator.manifests.labels import RUNNER
from finetune_operator.plan import Manifest

POD_USER_ID: Final = 65532
"""uid, gid and fsGroup of all pods."""


def pod_security(account: str = RUNNER) -> Manifest:
    """Security settings of a pod: a service account without a token, and no root."""
    return {
        "serviceAccountName": account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": POD_USER_ID,
            "runAsGroup": POD_USER_ID,
            "fsGroup": POD_USER_ID,
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


NAMESPACE_FIELD: Final = "{namespace}"


@dataclass(frozen=True, slots=True)
class AccountSettings:
    """What new service accounts get in every namespace.

    Attributes:
        annotations: annotations of `finetune-runner`, such as those for workload identity. `{namespace}` in a
            value becomes the namespace of the account.
        image_pull_secrets: names of Secrets in the account's namespace.
    """

    annotations: Mapping[str, str] = field(default_factory=dict)
    image_pull_secrets: tuple[str, ...] = ()


def build_service_account(namespace: str, name: str, settings: AccountSettings) -> Manifest:
    """A service account without roles.

    The operator creates it if it is missing and never changes it, so that platform teams can create it
    themselves, with other pull secrets and annotations.
    """
    account: Manifest = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: OPERATOR}},
        "automountServiceAccountToken": False,
    }
    if settings.annotations and name == RUNNER:
        account["metadata"]["annotations"] = {
            key: value.replace(NAMESPACE_FIELD, namespace) for key, value in settings.annotations.items()
        }
    if settings.image_pull_secrets:
        account["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    return account
