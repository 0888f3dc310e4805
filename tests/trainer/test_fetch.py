# SPDX-License-Identifier: Apache-2.0
"""The copies that the init container of a serving pod makes."""

from pathlib import Path

import pytest

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.store import Store, open_store
from tests.trainer.processes import run

OWNER = Owner(kind="InferenceDeployment", namespace="team", name="routing", uid="0f0f")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "store")))


def publish(store: Store, **files: str) -> ArtifactRef:
    with store.staging() as staging:
        (staging / "nested").mkdir()
        for name, content in files.items():
            (staging / name).write_text(content)
            (staging / "nested" / name).write_text(content)
        return ArtifactRef(kind="models", digest=store.publish("models", staging))


def config(tmp_path: Path, **folders: ArtifactRef) -> FetchConfig:
    return FetchConfig(
        owner=OWNER,
        store=StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "store")),
        items=tuple(FetchItem(artifact=artifact, folder=folder) for folder, artifact in folders.items()),
        destination=str(tmp_path / "models"),
    )


def test_each_item_is_copied_to_its_folder(store: Store, tmp_path: Path) -> None:
    base, adapter = publish(store, weights="base"), publish(store, weights="adapter")

    ended = run(config(tmp_path, base=base, tickets=adapter))

    assert ended.code == ExitCode.OK
    models = tmp_path / "models"
    assert sorted(path.name for path in models.iterdir()) == ["base", "tickets"]
    assert (models / "base" / "nested" / "weights").read_text() == "base"
    assert (models / "tickets" / "weights").read_text() == "adapter"
    assert (models / "base" / "manifest.json").read_bytes() == (
        store.artifact(base) / "manifest.json"
    ).read_bytes()


def test_a_changed_file_stops_the_pod_with_its_name(store: Store, tmp_path: Path) -> None:
    base = publish(store, weights="base")
    (store.artifact(base) / "nested" / "weights").write_text("evil")

    ended = run(config(tmp_path, base=base))

    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith("ArtifactCorrupt: ")
    assert "nested/weights was changed or damaged: its sha256 is" in ended.termination_message
    assert list((tmp_path / "models").iterdir()) == []


def test_a_file_that_is_gone_is_named(store: Store, tmp_path: Path) -> None:
    base = publish(store, weights="base")
    (store.artifact(base) / "weights").unlink()

    with pytest.raises(StageFailure, match="weights was changed or damaged: it is missing"):
        fetch(config(tmp_path, base=base))


def test_an_artifact_that_is_not_in_the_store_is_named(tmp_path: Path) -> None:
    ref = ArtifactRef(kind="models", digest="sha256:" + "a" * 64)

    ended = run(config(tmp_path, base=ref))

    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith(
        "ArtifactNotFound: the store has no complete pvc://artifacts/"
    )


def test_what_is_there_and_right_is_not_copied_again(store: Store, tmp_path: Path) -> None:
    base = publish(store, weights="base")
    fetch(config(tmp_path, base=base))
    before = (tmp_path / "models" / "base" / "weights").stat()

    fetch(config(tmp_path, base=base))

    assert (tmp_path / "models" / "base" / "weights").stat().st_ino == before.st_ino


@pytest.mark.parametrize("content", ["evil", "longer than before", None])
def test_what_is_there_and_wrong_is_copied_again(store: Store, tmp_path: Path, content: str | None) -> None:
    base = publish(store, weights="base")
    fetch(config(tmp_path, base=base))
    copy = tmp_path / "models" / "base" / "weights"
    if content is None:
        copy.unlink()
    else:
        copy.write_text(content)

    fetch(config(tmp_path, base=base))

    assert copy.read_text() == "base"


def test_what_a_killed_container_left_is_no_part_of_the_copy(store: Store, tmp_path: Path) -> None:
    left = tmp_path / "models" / ".base.part"
    left.mkdir(parents=True)
    (left / "extra").write_text("x")

    fetch(config(tmp_path, base=publish(store, weights="base")))

    assert [path.name for path in (tmp_path / "models").iterdir()] == ["base"]
    assert not (tmp_path / "models" / "base" / "extra").exists()


def test_a_folder_of_another_model_is_replaced(store: Store, tmp_path: Path) -> None:
    fetch(config(tmp_path, tickets=publish(store, weights="old", extra="x")))
    fetch(config(tmp_path, tickets=publish(store, weights="new")))

    folder = tmp_path / "models" / "tickets"
    assert (folder / "weights").read_text() == "new"
    assert not (folder / "extra").exists()


def test_a_destination_that_cannot_be_written_is_the_pods_own_trouble(store: Store, tmp_path: Path) -> None:
    base = publish(store, weights="base")
    (tmp_path / "models").write_text("a file")

    ended = run(config(tmp_path, base=base))

    assert ended.code == ExitCode.INTERNAL
    assert "the pod's own volume cannot hold the files" in ended.termination_message


def test_a_folder_outside_the_destination_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match=r"items\.folder: '\.\./x' is not a plain folder name"):
        fetch(config(tmp_path, **{"../x": publish(store, weights="base")}))
