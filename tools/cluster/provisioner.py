# SPDX-License-Identifier: Apache-2.0
"""Provision volumes of the StorageClass `local`: one folder per claim, removed with the claim.

python -m tools.cluster.provisioner KUBECONFIG FOLDER
"""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

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


LOG: Final = logging.getLogger(__name__)
_WATCH_SECONDS: Final = 300
_RETRY_SECONDS: Final = 1
_CONFLICT: Final = 409
_NOT_FOUND: Final = 404


class Provisioner:
    """Watches claims and volumes; handling an object twice is harmless."""

    def __init__(self, api: client.CoreV1Api, parent: Path) -> None:
        self._api = api
        self._parent = parent

    def provide(self, claim: dict[str, Any]) -> None:
        """Create the folder and the volume of a claim."""
        volume = volume_for(claim, self._parent)
        if volume is None:
            return
        folder = Path(volume["spec"]["hostPath"]["path"])
        folder.mkdir(parents=True, exist_ok=True)
        # The kubelet applies no fsGroup to host paths, and pods are not root.
        folder.chmod(0o777)
        try:
            # Despite its annotation the client accepts a plain dict.
            self._api.create_persistent_volume(volume)  # type: ignore[arg-type]
        except client.ApiException as error:
            if error.status != _CONFLICT:
                raise
        else:
            LOG.info("Created %s for %s", volume["metadata"]["name"], volume["spec"]["claimRef"]["name"])

    def reclaim(self, volume: dict[str, Any]) -> None:
        """Remove a released volume and its data."""
        folder = folder_to_remove(volume, self._parent)
        if folder is None:
            return
        if folder.exists():
            shutil.rmtree(folder)
        try:
            self._api.delete_persistent_volume(volume["metadata"]["name"])
        except client.ApiException as error:
            if error.status != _NOT_FOUND:
                raise
        else:
            LOG.info("Removed %s", volume["metadata"]["name"])

    def follow(self, listing: Callable[..., Any], handle: Callable[[dict[str, Any]], None]) -> None:
        """Call `handle` with every object and after each change; never returns."""
        while True:
            try:
                for event in watch.Watch().stream(listing, timeout_seconds=_WATCH_SECONDS):
                    if event["type"] != "DELETED":
                        handle(event["raw_object"])
            except (client.ApiException, HTTPError) as error:
                LOG.warning("Watching again in %s s: %s", _RETRY_SECONDS, error)
                time.sleep(_RETRY_SECONDS)

    def run(self) -> None:
        """Watch claims and volumes until an error that is not one of the API."""
        claims = self._api.list_persistent_volume_claim_for_all_namespaces
        with ThreadPoolExecutor() as pool:
            followers = [
                pool.submit(self.follow, claims, self.provide),
                pool.submit(self.follow, self._api.list_persistent_volume, self.reclaim),
            ]
            done, _ = wait(followers, return_when=FIRST_COMPLETED)
            LOG.critical("Stopping after an error", exc_info=done.pop().exception())
            logging.shutdown()
            # The other thread never ends by itself; `up` restarts this process.
            os._exit(1)


def main(kubeconfig: str, parent: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    api = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    Provisioner(api, Path(parent)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
