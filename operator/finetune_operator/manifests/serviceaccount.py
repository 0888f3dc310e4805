"""The service account of all pods in the users' namespaces."""

from finetune_operator.manifests.labels import MANAGED_BY, OPERATOR, RUNNER
from finetune_operator.plan import Manifest


def build_runner_account(namespace: str) -> Manifest:
    """`finetune-runner`: bound to no role. Created where absent and never changed, so that platforms can
    annotate it for workload identity."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": RUNNER, "namespace": namespace, "labels": {MANAGED_BY: OPERATOR}},
        "automountServiceAccountToken": False,
    }
