# SPDX-License-Identifier: Apache-2.0
"""The backend that the options of a verb, or the arguments of `Client`, select."""

from pathlib import Path

from finetune_client.backend import Backend
from finetune_client.errors import OperationError, ProgramExit


def connect(
    namespace: str = "", context: str = "", kubeconfig: Path | None = None, local: Path | None = None
) -> Backend:
    """The namespace of a cluster, or the folder of local runs; imports only the packages of the chosen one.

    Raises:
        OperationError: no cluster is configured, or the arguments contradict each other.
    """
    if local is None:
        from finetune_client.access import Access
        from finetune_client.cluster import ClusterBackend

        return ClusterBackend(Access("kubectl", kubeconfig=kubeconfig, context=context), namespace)
    if namespace or context or kubeconfig is not None:
        raise OperationError(
            "--local and the options of a cluster (--namespace, --context, --kubeconfig) exclude each other",
            exit_code=ProgramExit.INVALID,
        )
    from finetune_client.local.backend import LocalBackend

    return LocalBackend(local)
