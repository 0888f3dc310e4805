# SPDX-License-Identifier: Apache-2.0
"""Reading the stored result of a stage, and checking that the store is usable."""

from pathlib import Path

import pytest

from finetune_trainer.contract.configs import CollectConfig
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.store import open_store, processes
from tests.trainer.processes import run

OWNER = Owner(kind="FineTuneJob", namespace="team", name="tickets", uid="uid-1")


def probing(root: Path) -> CollectConfig:
    store = StoreConfig(uri="pvc://artifacts", path=str(root))
    return CollectConfig(owner=OWNER, run="uid-1", store=store, of="train", probe=True)


def test_a_store_that_can_be_used_is_left_as_it_was(tmp_path: Path) -> None:
    ended = run(probing(tmp_path))
    assert (ended.result.reason, ended.code) == (FailureReason.ARTIFACT_NOT_FOUND, ExitCode.BAD_CONFIG)
    assert list((tmp_path / "runs" / "uid-1" / "train").iterdir()) == []


def test_a_store_that_can_be_read_and_not_written_fails_the_probe(tmp_path: Path) -> None:
    config = probing(tmp_path)
    store = open_store(config.store)
    store.write_result(StageResult(stage="train", run="uid-1", outcome="Failed", reason="Internal"))
    # Permissions do not stop root, but a folder in the place of the file does.
    (tmp_path / "runs" / "uid-1" / "train" / processes.PROBE_NAME).mkdir()
    ended = run(config)
    assert (ended.result.reason, ended.code) == (FailureReason.STORE_UNAVAILABLE, ExitCode.STORE_UNAVAILABLE)
    assert run(config.model_copy(update={"probe": False})).code == ExitCode.OK


@pytest.mark.parametrize("probe", [True, False])
def test_a_result_in_the_store_is_passed_on(tmp_path: Path, probe: bool) -> None:
    config = probing(tmp_path).model_copy(update={"probe": probe})
    open_store(config.store).write_result(StageResult(stage="train", run="uid-1", outcome="Succeeded"))
    ended = run(config)
    assert (ended.code, ended.result.outcome) == (ExitCode.OK, "Succeeded")
