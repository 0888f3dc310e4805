"""The demo's namespace, without what an earlier demo left in it."""

from typing import Final

from tools.demo.access import Access

NAMESPACE: Final = "finetune-demo"

MANIFEST: Final = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    # Every pod of a run passes the strictest of the standard policies.
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


def prepare(access: Access) -> list[str]:
    """Make the namespace and the claim for the base model; names of what was removed of an earlier demo.

    The base model stays where it is: to copy it again costs more than all the rest.
    """
    access.kubectl("apply", "--server-side", "--filename=-", text=MANIFEST)
    scope = f"--namespace={NAMESPACE}"
    found = access.kubectl("get", OURS, scope, "--output=name", "--ignore-not-found").split()
    if found:
        # In the foreground: the objects are gone when their pods are.
        access.kubectl("delete", scope, "--cascade=foreground", "--timeout=180s", *found)
    access.kubectl("delete", "persistentvolumeclaim/artifacts", scope, "--ignore-not-found", "--timeout=120s")
    return found
