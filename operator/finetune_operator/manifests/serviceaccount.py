"""Service account of all pods in users' namespaces."""

from finetune_operator.manifests.labels import MANAGED_BY, OPERATOR, RUNNER
from finetune_operator.plan import Manifest


def build_runner_account(namespace: str) -> Manifest:
    """`finetune-runner`, which has no role. The operator creates it if missing and never changes it, so that
    platform teams can annotate it for workload identity."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": RUNNER, "namespace": namespace, "labels": {MANAGED_BY: OPERATOR}},
        "automountServiceAccountToken": False,
    }
