"""Service accounts of pods in users' namespaces."""

from finetune_operator.manifests.labels import MANAGED_BY, OPERATOR
from finetune_operator.plan import Manifest


def build_service_account(namespace: str, name: str) -> Manifest:
    """A service account without roles.

    The operator creates it if it is missing and never changes it, so that platform teams can add pull
    secrets, and annotate `finetune-runner` for workload identity.
    """
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace, "labels": {MANAGED_BY: OPERATOR}},
        "automountServiceAccountToken": False,
    }
