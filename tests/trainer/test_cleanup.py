# SPDX-License-Identifier: Apache-2.0
"""A cleanup pod removes the content of a record or run from the store, and nothing else."""

import shutil
from pathlib import Path

from finetune_trainer.contract.configs import CleanupConfig
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.store import Store, open_store
from tests.trainer.processes import run

OWNER = Owner(kind="Checkpoint", namespace="team", name="routing-1", uid="u")


def publish(store: Store, text: str) -> ArtifactRef:
    with store.staging() as staging:
        (staging / "weights").write_text(text)
        return ArtifactRef(kind="checkpoints", digest=store.publish("checkpoints", staging))


def cleanup(root: Path, artifact: ArtifactRef) -> CleanupConfig:
    return CleanupConfig(
        owner=OWNER, store=StoreConfig(uri="pvc://artifacts", path=str(root)), artifact=artifact
    )


def test_the_folder_of_the_record_goes_and_all_others_stay(tmp_path: Path) -> None:
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path)))
    gone, kept = publish(store, "one"), publish(store, "two")
    ended = run(cleanup(tmp_path, gone))
    assert ended.code == ExitCode.OK
    assert not store.has(gone)
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == [kept.digest[7:]]
    # A second pod, after the first was killed at the end of its work.
    assert run(cleanup(tmp_path, gone)).code == ExitCode.OK


def test_what_a_cleanup_that_was_cut_short_left_is_removed_too(tmp_path: Path) -> None:
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path)))
    artifact = publish(store, "one")
    folder = tmp_path / "checkpoints" / artifact.digest[7:]
    (folder / "manifest.json").unlink()
    assert run(cleanup(tmp_path, artifact)).code == ExitCode.OK
    assert not folder.exists()


def test_the_folders_of_all_stages_of_a_run_go_and_those_of_others_stay(tmp_path: Path) -> None:
    config = StoreConfig(uri="pvc://artifacts", path=str(tmp_path))
    for run_name, stage in (("u", "train"), ("u", "prepare"), ("u-2", "train")):
        open_store(config).run_folder(run_name, stage).write("result.json", b"{}")
    removal = CleanupConfig(owner=OWNER, store=config, run="u")
    for _ in range(2):
        assert run(removal).code == ExitCode.OK
        assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["u-2"]


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path)))
    artifact = publish(store, "one")
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    ended = run(cleanup(tmp_path, artifact))
    assert ended.code == ExitCode.STORE_UNAVAILABLE
    assert ended.termination_message.startswith("StoreUnavailable: store:")
