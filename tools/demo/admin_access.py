# SPDX-License-Identifier: Apache-2.0
"""The demo's namespace."""

from typing import Final

from finetune_client.access import Access

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
