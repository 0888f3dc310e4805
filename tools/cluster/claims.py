# SPDX-License-Identifier: Apache-2.0
"""Volumes for claims of the StorageClass `local`, and when their data is deleted."""

from pathlib import Path
from typing import Any, Final

PROVISIONER: Final = "finetune.dev/local"
STORAGE_CLASS: Final = "local"
_PROVISIONED_BY: Final = "pv.kubernetes.io/provisioned-by"


def volume_for(claim: dict[str, Any], parent: Path) -> dict[str, Any] | None:
    """The PersistentVolume for `claim` with its data below `parent`; None if the claim needs none of ours.

    Every access mode is granted, including ReadWriteMany, because all pods run on one node.
    """
    metadata, spec = claim["metadata"], claim["spec"]
    is_pending = not spec.get("volumeName") and "deletionTimestamp" not in metadata
    is_ours = spec.get("storageClassName") == STORAGE_CLASS and spec.get("volumeMode") != "Block"
    if not is_pending or not is_ours:
        return None
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        # The annotation prevents the controller manager from deleting the volume itself.
        "metadata": {"name": f"pvc-{metadata['uid']}", "annotations": {_PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Delete",
            "hostPath": {"path": str(parent / metadata["uid"]), "type": "Directory"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


def folder_to_remove(volume: dict[str, Any], parent: Path) -> Path | None:
    """Data folder of a volume whose claim was deleted; None if the volume is in use or not ours."""
    annotations = volume["metadata"].get("annotations") or {}
    if annotations.get(_PROVISIONED_BY) != PROVISIONER or volume["status"].get("phase") != "Released":
        return None
    folder = Path(volume["spec"]["hostPath"]["path"])
    return folder if folder.parent == parent else None
