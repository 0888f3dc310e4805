# SPDX-License-Identifier: Apache-2.0
"""Volumes of the StorageClass `local`."""

from pathlib import Path
from typing import Any

import pytest

from tools.cluster.provisioner import PROVISIONER, folder_to_remove, volume_for

PARENT = Path("/volumes")


def claim(**spec: object) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team-a", "name": "artifacts", "uid": "1f"},
        "spec": {
            "storageClassName": "local",
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "2Gi"}},
        }
        | spec,
    }


def volume(phase: str, path: str = "/volumes/1f", provisioner: str = PROVISIONER) -> dict[str, Any]:
    return {
        "metadata": {"name": "pvc-1f", "annotations": {"pv.kubernetes.io/provisioned-by": provisioner}},
        "spec": {"hostPath": {"path": path}},
        "status": {"phase": phase},
    }


def test_a_claim_gets_a_volume_of_its_own_size_and_access_modes() -> None:
    made = volume_for(claim(), PARENT)
    assert made is not None
    assert made["spec"]["capacity"] == {"storage": "2Gi"}
    assert made["spec"]["accessModes"] == ["ReadWriteMany"]
    assert made["spec"]["hostPath"]["path"] == "/volumes/1f"
    assert made["spec"]["claimRef"]["uid"] == "1f"


@pytest.mark.parametrize(
    "spec",
    [
        {"volumeName": "pvc-1f"},
        {"storageClassName": "other"},
        {"storageClassName": ""},
        {"volumeMode": "Block"},
    ],
)
def test_a_claim_that_is_bound_or_not_for_a_folder_gets_none(spec: dict[str, object]) -> None:
    assert volume_for(claim(**spec), PARENT) is None


def test_a_claim_that_is_being_deleted_gets_none() -> None:
    deleted = claim()
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert volume_for(deleted, PARENT) is None


def test_data_goes_when_the_claim_is_gone() -> None:
    assert folder_to_remove(volume("Released"), PARENT) == Path("/volumes/1f")


@pytest.mark.parametrize(
    "kept",
    [
        volume("Bound"),
        volume("Available"),
        volume("Released", path="/etc"),
        volume("Released", provisioner="example.test/other"),
        {"metadata": {"name": "static"}, "spec": {}, "status": {"phase": "Released"}},
    ],
)
def test_data_that_is_used_or_not_ours_stays(kept: dict[str, Any]) -> None:
    assert folder_to_remove(kept, PARENT) is None
