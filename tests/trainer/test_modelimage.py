# SPDX-License-Identifier: Apache-2.0
"""Whole models in OCI images: what a serving pod reads in place, and what it refuses."""

import shutil
from pathlib import Path

import pytest

from finetune_trainer.contract.references import ArtifactRef, ImageVolume, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.store import open_store

IMAGE = f"registry.example/models/base@sha256:{'a' * 64}"


@pytest.fixture
def config(tmp_path: Path) -> FetchConfig:
    """The config of a pod whose base model is in the mounted image `tmp_path/image`."""
    place = StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "store"))
    store = open_store(place)
    with store.staging() as staging:
        (staging / "nested").mkdir()
        (staging / "nested" / "weights").write_text("weights")
        (staging / "config.json").write_text("{}")
        base = ArtifactRef(kind="models", digest=store.publish("models", staging))
    shutil.copytree(store.artifact(base, verify=False), tmp_path / "image")
    return FetchConfig(
        owner=Owner(kind="InferenceDeployment", namespace="team", name="routing", uid="uid"),
        store=place,
        items=(FetchItem(artifact=base, folder="base", in_cache=True),),
        image=ImageVolume(reference=IMAGE, path=str(tmp_path / "image")),
        destination=str(tmp_path / "pod"),
    )


def refusal(config: FetchConfig) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        fetch(config)
    assert IMAGE in caught.value.message
    return caught.value


@pytest.mark.parametrize("has_manifest", [True, False])
def test_the_files_of_an_image_are_read_in_place(
    config: FetchConfig, tmp_path: Path, has_manifest: bool
) -> None:
    if not has_manifest:
        (tmp_path / "image" / "manifest.json").unlink()

    fetch(config)
    fetch(config)

    served = tmp_path / "pod" / "base"
    assert served.resolve() == tmp_path / "image"
    assert (served / "nested" / "weights").read_text() == "weights"


def test_an_empty_folder_is_refused_with_its_causes(config: FetchConfig, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "image")
    (tmp_path / "image").mkdir()

    failure = refusal(config)

    assert failure.reason is FailureReason.ARTIFACT_NOT_FOUND
    for cause in ("mounted as an empty folder", "`oras push`", "the cluster has no image volumes"):
        assert cause in failure.message


@pytest.mark.parametrize(
    ("name", "content"),
    [("nested/weights", "w3ights"), ("nested/weights", None), ("config.json", "{ }"), ("tokenizer.py", "")],
)
def test_a_file_that_differs_from_the_model_is_named(
    config: FetchConfig, tmp_path: Path, name: str, content: str | None
) -> None:
    path = tmp_path / "image" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)

    failure = refusal(config)

    assert failure.reason is FailureReason.ARTIFACT_CORRUPT
    assert f"{IMAGE}/{name} was changed or damaged" in failure.message
    assert "build the image again" in failure.message
    assert not (tmp_path / "pod" / "base").exists()


def test_a_file_that_only_root_can_read_is_named(
    config: FetchConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "config.json"))

    monkeypatch.setattr("finetune_trainer.store.copies.verify_files", refuse)

    failure = refusal(config)

    assert f"{IMAGE}/config.json: Permission denied; all users must be able to read" in failure.message
