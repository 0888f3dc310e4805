# SPDX-License-Identifier: Apache-2.0
"""An administrator's access to the local cluster or to that of KUBE_CONTEXT, and the demo's namespace."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Final, Self

from finetune_client.access import Access, run_program
from finetune_client.errors import OperationError
from tools.cluster import TestCluster, program

CONTEXT: Final = os.environ.get("KUBE_CONTEXT", "")


class AdminAccess(Access):
    """kubectl, helm and API requests with the same credentials.

    Attributes:
        where: description of the cluster.
        hint: command after which plain `kubectl` uses the same cluster; empty if none is needed.
    """

    def __init__(
        self,
        kubectl: str,
        helm: str,
        *,
        kubeconfig: Path | None = None,
        context: str = "",
        where: str,
        hint: str = "",
    ) -> None:
        super().__init__(kubectl, kubeconfig=kubeconfig, context=context)
        options = {"kubeconfig": kubeconfig, "kube-context": context}
        self._helm = [helm, *(f"--{name}={value}" for name, value in options.items() if value)]
        self.where = where
        self.hint = hint

    @classmethod
    def from_environment(cls, helm: str = "helm") -> Self:
        """Access to the cluster that the environment selects.

        Args:
            helm: program that the local cluster's tools or a peer's have built.

        Raises:
            OperationError: kubectl, helm or the context is missing, or the local cluster does not run.
        """
        if not CONTEXT:
            kubeconfig = TestCluster().kubeconfig
            if not kubeconfig.exists():
                raise OperationError("the local cluster does not run: start it", ["make cluster"])
            return cls(
                str(program("kubectl")),
                str(program(helm)),
                kubeconfig=kubeconfig,
                where="the local cluster",
                hint='eval "$(.venv/bin/python -m tools.cluster env)"',
            )
        try:
            access = cls(
                "kubectl",
                helm,
                context=CONTEXT,
                where=f"the cluster of context {CONTEXT}",
                hint=f"kubectl config use-context {shlex.quote(CONTEXT)}",
            )
        except OperationError as error:
            raise OperationError(f"KUBE_CONTEXT={CONTEXT}: {error}", error.commands) from error
        for name in ("kubectl", helm):
            if shutil.which(name) is None:
                raise OperationError(f"KUBE_CONTEXT is set, but {name} is not on PATH: install it")
        return access

    def helm(self, *arguments: str, text: str | None = None) -> str:
        """Run helm with `text` as its input, and return its output.

        Raises:
            OperationError: it failed; the message contains Helm's message.
        """
        return run_program("helm", self._helm, arguments, text)


NAMESPACE: Final = "finetune-demo"

MANIFEST: Final = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    # Every pod of a run passes the strictest of the Pod Security Standards.
    pod-security.kubernetes.io/enforce: restricted
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: models
  namespace: {NAMESPACE}
spec:
  accessModes: [ReadWriteMany]
  resources:
    requests:
      storage: 2Gi
"""

OURS: Final = "inferencedeployments,finetunejobs,datasets,checkpoints,datasetversions"


def prepare_namespace(access: Access) -> list[str]:
    """Create the namespace and the claim for the base model; returns the names of removed objects.

    The base model is kept, because copying it takes longer than everything else here.
    """
    access.kubectl("apply", "--server-side", "--filename=-", text=MANIFEST)
    scope = f"--namespace={NAMESPACE}"
    found = access.kubectl("get", OURS, scope, "--output=name", "--ignore-not-found").split()
    if found:
        # In the foreground, so that their pods are deleted first.
        access.kubectl("delete", scope, "--cascade=foreground", "--timeout=180s", *found)
    access.kubectl("delete", "persistentvolumeclaim/artifacts", scope, "--ignore-not-found", "--timeout=120s")
    return found
