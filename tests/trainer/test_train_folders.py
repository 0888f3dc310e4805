# SPDX-License-Identifier: Apache-2.0
"""Problems of saved folders are reported with the URI, not with the pod's path."""

from pathlib import Path

import pytest

from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder, open_store
from finetune_trainer.train.state_folders import find_problem, remove_unfinished, save_folder

NAME = "state/step-3"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return open_store(StoreConfig(uri="pvc://artifacts/team", path=str(tmp_path))).run_folder(
        "uid-1", "train"
    )


def fill(folder: Path) -> None:
    (folder / "optimizer.pt").write_bytes(b"state")


@pytest.mark.parametrize("damage", ["truncated", "missing", "led out"])
def test_a_damaged_file_is_named_by_its_uri(run: RunFolder, tmp_path: Path, damage: str) -> None:
    save_folder(run, NAME, fill)
    assert find_problem(run, NAME) is None
    file = run.path / NAME / "optimizer.pt"
    if damage == "truncated":
        file.write_bytes(b"sta")
    else:
        file.unlink()
    if damage == "led out":
        file.symlink_to("/etc/hostname")

    problem = find_problem(run, NAME)

    assert problem is not None
    assert f"{run.uri}/{NAME}/optimizer.pt" in problem
    assert run.uri.startswith("pvc://artifacts/team/runs/uid-1/")
    assert str(tmp_path) not in problem


def test_a_folder_that_cannot_be_made_is_named_by_its_uri(run: RunFolder, tmp_path: Path) -> None:
    (run.path / "state").write_text("a file")

    with pytest.raises(StageFailure) as caught:
        remove_unfinished(run, "state", "step-")

    assert f"{run.uri}/state" in caught.value.message
    assert str(tmp_path) not in caught.value.message
