# SPDX-License-Identifier: Apache-2.0
"""The model cache: what fills it, and what a serving pod reads in place."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.serving import FetchConfig, FetchItem, FillConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.fetch import fill_cache as fill
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.store import Store, copies, download_lock, failures, open_store
from finetune_trainer.store.copies import CacheVolume
from tests.trainer.processes import run


class Namespace:
    """A store with one base model, the model cache, and the folder of a serving pod."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = StoreConfig(uri="pvc://artifacts", path=str(root / "store"))
        self.cache = StoreConfig(uri="pvc://cache", path=str(root / "cache"))
        self.store: Store = open_store(self.place)
        with self.store.staging() as staging:
            (staging / "nested").mkdir()
            (staging / "nested" / "weights").write_text("weights")
            (staging / "config.json").write_text("{}")
            self.base = ArtifactRef(kind="models", digest=self.store.publish("models", staging))

    @property
    def cached(self) -> Path:
        """The folder of the base model in the cache."""
        return self.root / "cache" / "models" / self.base.digest.removeprefix("sha256:")

    @property
    def served(self) -> Path:
        """The folder of the base model in the pod."""
        return self.root / "pod" / "base"

    def fill_config(self, endpoint: str = "routing") -> FillConfig:
        owner = Owner(kind="InferenceDeployment", namespace="team", name=endpoint, uid=f"uid-of-{endpoint}")
        return FillConfig(owner=owner, store=self.place, cache=self.cache, artifact=self.base)

    def fetch_config(self) -> FetchConfig:
        return FetchConfig(
            owner=self.fill_config().owner,
            store=self.place,
            cache=self.cache,
            items=(FetchItem(artifact=self.base, folder="base", in_cache=True),),
            destination=str(self.root / "pod"),
        )


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(download_lock, "CONFIRM_SECONDS", 0.01)
    monkeypatch.setattr(download_lock, "POLL_SECONDS", 0.05)
    return Namespace(tmp_path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders in the cache whose files were hashed."""
    folders: list[Path] = []
    verify = failures.verify_files

    def count(folder: Path, *arguments: object, **named: object) -> None:
        folders.append(folder)
        verify(folder, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(copies, "verify_files", count)
    return folders


def test_a_filled_model_is_read_in_place_and_the_pod_has_no_copy(namespace: Namespace) -> None:
    assert run(namespace.fill_config()).code == ExitCode.OK

    assert run(namespace.fetch_config()).code == ExitCode.OK

    assert namespace.served.is_symlink()
    assert namespace.served.resolve() == namespace.cached
    assert (namespace.served / "nested" / "weights").read_text() == "weights"


def test_a_model_is_hashed_once_and_not_by_each_pod(namespace: Namespace, hashed: list[Path]) -> None:
    fill(namespace.fill_config())
    fetch(namespace.fetch_config())
    fetch(namespace.fetch_config())
    fill(namespace.fill_config("other"))

    assert hashed == [namespace.cached]


def test_a_model_that_the_cache_has_no_room_for_is_refused_with_the_claim(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 40, free=8))

    with pytest.raises(StageFailure) as caught:
        fill(namespace.fill_config())

    place = f"models/{namespace.base.digest.removeprefix('sha256:')}"
    assert caught.value.message == (
        f"store: pvc://cache/{place}: the copy of pvc://artifacts/{place} needs 9 bytes, and 8 bytes are"
        " free; free space on this volume, or use a larger claim"
    )
    assert not namespace.cached.exists()


@pytest.mark.parametrize("name", ["nested/weights", "config.json"])
def test_a_changed_file_never_serves_even_with_its_old_size_and_time(namespace: Namespace, name: str) -> None:
    fill(namespace.fill_config())
    changed = namespace.cached / name
    before = changed.stat()
    changed.write_text("x" * before.st_size)
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))

    ended = run(namespace.fetch_config())

    assert ended.code == ExitCode.BAD_CONFIG
    assert f"{name} was changed or damaged: its sha256 is" in ended.termination_message
    assert "delete the fill Jobs of the endpoint" in ended.termination_message
    assert not namespace.served.exists()


def test_a_file_of_a_stranger_in_the_folder_is_refused(namespace: Namespace) -> None:
    fill(namespace.fill_config())
    (namespace.cached / "pytorch_model.bin").write_text("code")

    with pytest.raises(
        StageFailure, match=r"pytorch_model\.bin was changed or damaged: it is not in the mani"
    ):
        fetch(namespace.fetch_config())


def test_files_whose_times_changed_are_hashed_again(namespace: Namespace, hashed: list[Path]) -> None:
    fill(namespace.fill_config())
    os.utime(namespace.cached / "config.json")

    fetch(namespace.fetch_config())

    assert hashed == [namespace.cached, namespace.cached]


def test_a_cache_whose_records_are_lost_is_hashed_again(namespace: Namespace, hashed: list[Path]) -> None:
    fill(namespace.fill_config())
    shutil.rmtree(namespace.root / "cache" / copies.VERIFIED)

    fetch(namespace.fetch_config())

    assert hashed == [namespace.cached, namespace.cached]


def test_filling_again_records_what_was_verified(namespace: Namespace, hashed: list[Path]) -> None:
    fill(namespace.fill_config())
    shutil.rmtree(namespace.root / "cache" / copies.VERIFIED)

    fill(namespace.fill_config("other"))
    fetch(namespace.fetch_config())

    assert hashed == [namespace.cached, namespace.cached]


def test_a_pod_does_not_start_from_a_cache_without_the_model(namespace: Namespace) -> None:
    ended = run(namespace.fetch_config())

    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith(
        "ArtifactNotFound: the model cache has no complete pvc://cache/models/"
    )


def test_filling_again_replaces_a_damaged_copy(namespace: Namespace) -> None:
    fill(namespace.fill_config())
    (namespace.cached / "nested" / "weights").write_text("evil")
    (namespace.cached / "extra").write_text("x")

    fill(namespace.fill_config())

    fetch(namespace.fetch_config())
    assert (namespace.served / "nested" / "weights").read_text() == "weights"
    assert not (namespace.served / "extra").exists()


def test_a_model_that_is_damaged_in_the_store_does_not_enter_the_cache(namespace: Namespace) -> None:
    (namespace.store.artifact(namespace.base) / "config.json").write_text("[]")

    with pytest.raises(StageFailure, match=r"pvc://artifacts/models/.*config\.json was changed") as failure:
        fill(namespace.fill_config())

    assert failure.value.reason is FailureReason.ARTIFACT_CORRUPT
    assert CacheVolume(namespace.cache).find(namespace.base) is None


def test_a_cache_that_cannot_be_written_is_named(namespace: Namespace) -> None:
    (namespace.root / "cache").mkdir(exist_ok=True)
    (namespace.root / "cache" / "models").write_text("a file")

    ended = run(namespace.fill_config())

    assert ended.code == ExitCode.STORE_UNAVAILABLE
    assert ended.termination_message.startswith("StoreUnavailable: store: pvc://cache/models")
    assert "check that the claim is mounted, has free space" in ended.termination_message


def test_endpoints_that_fill_at_the_same_time_copy_a_model_once(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, copied = threading.Event(), []
    copy = copies.copy_artifact

    def slow(*arguments: object) -> None:
        copied.append(arguments)
        begun.set()
        assert seen.wait(60)
        copy(*arguments)  # type: ignore[arg-type]

    seen = threading.Event()
    read = Store.read_download_note

    def note(self: Store, source: str) -> bytes | None:
        found = read(self, source)
        if begun.is_set() and found and b"uid-of-one" in found and threading.current_thread().name == "two":
            seen.set()
        return found

    monkeypatch.setattr(copies, "copy_artifact", slow)
    monkeypatch.setattr(Store, "read_download_note", note)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fill, namespace.fill_config("one"))
        assert begun.wait(60)

        def second() -> None:
            threading.current_thread().name = "two"
            fill(namespace.fill_config("two"))

        other = pool.submit(second)
        first.result()
        other.result()

    assert len(copied) == 1
