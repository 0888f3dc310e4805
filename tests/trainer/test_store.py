# SPDX-License-Identifier: Apache-2.0
"""The store on a mounted file system."""

import ctypes
import errno
import json
import mmap
import os
from pathlib import Path

import pytest

from finetune_trainer.contract.references import ArtifactRef, StoreConfig
from finetune_trainer.contract.results import PrepareResult, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import Manifest, digest_of
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import Store, mounted, open_store
from finetune_trainer.store.base import STAGING, STALE_STAGING_SECONDS
from finetune_trainer.store.mounted import read_ahead


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(StoreConfig(uri="pvc://artifacts/team", path=str(tmp_path)))


def publish(store: Store, files: dict[str, str]) -> ArtifactRef:
    with store.staging() as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(content)
        return ArtifactRef(kind="models", digest=store.publish("models", staging))


def test_a_published_folder_is_found_by_the_digest_of_its_content(store: Store) -> None:
    ref = publish(store, {"config.json": "{}", "weights/part": "abc"})

    folder = store.artifact(ref, verify=True)

    assert store.has(ref)
    assert (folder / "weights" / "part").read_text() == "abc"
    assert store.uri(ref) == f"pvc://artifacts/team/models/{ref.digest.removeprefix('sha256:')}"
    assert digest_of((folder / "manifest.json").read_bytes()) == ref.digest


def test_a_manifest_is_canonical_json_without_times(store: Store) -> None:
    folder = store.artifact(publish(store, {"b": "2", "a": "1"}))

    assert (folder / "manifest.json").read_text() == (
        '{"files":['
        '{"bytes":1,"path":"a","sha256":"6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"},'
        '{"bytes":1,"path":"b","sha256":"d4735e3a265e16eee03f59718b9b5d03019c07d8b6c51f90da3a666eec13ab35"}'
        '],"version":1}'
    )


def test_equal_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    first = publish(store, {"a": "1"})
    before = (store.artifact(first) / "a").stat()

    second = publish(store, {"a": "1"})

    assert second == first
    assert (store.artifact(first) / "a").stat().st_ino == before.st_ino
    assert list((tmp_path / STAGING).iterdir()) == []


def test_an_incomplete_leftover_is_replaced(store: Store) -> None:
    ref = publish(store, {"a": "1"})
    folder = store.artifact(ref)
    (folder / "manifest.json").unlink()
    (folder / "a").write_text("half")
    assert not store.has(ref)

    publish(store, {"a": "1"})

    assert (store.artifact(ref, verify=True) / "a").read_text() == "1"


def test_what_was_not_published_is_removed(store: Store, tmp_path: Path) -> None:
    with store.staging() as staging:
        (staging / "a").write_text("1")

    assert list((tmp_path / STAGING).iterdir()) == []


def test_staging_of_a_pod_that_was_killed_is_removed_after_a_week(store: Store, tmp_path: Path) -> None:
    old, fresh = tmp_path / STAGING / "old", tmp_path / STAGING / "fresh"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    week_ago = fresh.stat().st_mtime - STALE_STAGING_SECONDS - 60
    os.utime(old, (week_ago, week_ago))

    with store.staging():
        pass

    assert not old.exists()
    assert fresh.exists()


def test_an_artifact_that_is_not_there_is_named_with_what_to_check(store: Store) -> None:
    ref = ArtifactRef(kind="datasets", digest="sha256:" + "a" * 64)

    with pytest.raises(StageFailure, match=f"no complete {store.uri(ref)}") as caught:
        store.artifact(ref)

    assert caught.value.reason is FailureReason.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a").write_text("2"), "a was changed or damaged: its sha256 is"),
        (lambda folder: (folder / "a").write_text("12"), "a was changed or damaged: it has 2 bytes, not 1"),
        (lambda folder: (folder / "a").unlink(), "a was changed or damaged: it is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), "manifest.json was changed or damaged"),
    ],
)
def test_a_damaged_artifact_names_the_file(store: Store, damage: object, message: str) -> None:
    ref = publish(store, {"a": "1"})
    assert callable(damage)
    damage(store.artifact(ref))

    with pytest.raises(StageFailure, match=message) as caught:
        store.artifact(ref, verify=True)

    assert caught.value.reason is FailureReason.ARTIFACT_CORRUPT
    assert caught.value.message.startswith(store.uri(ref))


def test_a_file_changed_together_with_its_manifest_is_found_by_the_digest(store: Store) -> None:
    ref = publish(store, {"a": "1"})
    folder = store.artifact(ref)
    (folder / "a").write_text("2")
    (folder / "manifest.json").write_bytes(Manifest.of(folder).to_bytes())

    with pytest.raises(StageFailure, match=r"manifest\.json was changed or damaged: its digest is") as caught:
        store.artifact(ref)

    assert caught.value.reason is FailureReason.ARTIFACT_CORRUPT


def test_a_manifest_that_reaches_outside_its_folder_is_refused(store: Store, tmp_path: Path) -> None:
    content = b'{"files":[{"bytes":1,"path":"../a","sha256":"' + b"0" * 64 + b'"}],"version":1}'
    ref = ArtifactRef(kind="models", digest=digest_of(content))
    folder = tmp_path / "models" / ref.digest.removeprefix("sha256:")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(content)

    with pytest.raises(StageFailure, match="stay inside the folder"):
        store.artifact(ref)


def test_publishing_says_how_far_it_is(store: Store) -> None:
    seen: list[int] = []
    with store.staging() as staging:
        for name in ("a", "b"):
            (staging / name).write_text(name * 100)
        store.publish("models", staging, seen.append)

    assert sum(seen) == 200
    assert len(seen) > 1


def test_a_symbolic_link_is_never_published(store: Store) -> None:
    with store.staging() as staging:
        (staging / "a").symlink_to("/etc/hostname")
        with pytest.raises(StageFailure, match="is a symbolic link"):
            store.publish("models", staging)


def test_the_digest_of_a_folder_can_be_known_before_it_is_copied(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "base"
    source.mkdir()
    for name in ("config.json", "notes.txt"):
        (source / name).write_text(name)
    seen: list[int] = []

    manifest = Manifest.of(source, ["config.json"], seen.append)

    assert manifest.digest == publish(store, {"config.json": "config.json"}).digest
    assert sum(seen) == manifest.total_bytes == len("config.json")


def test_a_result_is_read_back(store: Store) -> None:
    result = StageResult(
        stage="prepare", run="uid-1", outcome="Succeeded", prepare=PrepareResult(problem_count=2)
    )
    assert store.read_result("uid-1", "prepare") is None

    store.write_result(result)

    assert store.read_result("uid-1", "prepare") == result
    assert [path.name for path in store.run_folder("uid-1", "prepare").path.iterdir()] == ["result.json"]


def test_a_result_of_another_version_counts_as_none(store: Store) -> None:
    (store.run_folder("uid-1", "prepare").path / "result.json").write_text('{"contract":1,"news":true}')

    assert store.read_result("uid-1", "prepare") is None


def test_the_content_of_a_run_is_not_deleted_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "volume" / "store", tmp_path / "outside" / "uid-1"
    root.mkdir(parents=True)
    outside.mkdir(parents=True)
    (root / "runs").symlink_to(outside.parent)
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(root)))
    with pytest.raises(StageFailure) as caught:
        store.delete_run("uid-1")
    assert caught.value.reason == FailureReason.STORE_UNAVAILABLE
    assert outside.is_dir()


def test_a_run_is_one_folder_name(store: Store) -> None:
    with pytest.raises(StageFailure, match=r"run: '\.\./x' is not a folder name"):
        store.run_folder("../x", "prepare")


def test_a_store_that_cannot_be_written_says_what_to_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "file")))

    message = r"^store: pvc://artifacts/runs/uid-1\S*: Not a directory; check that the claim"
    with pytest.raises(StageFailure, match=message) as caught:
        store.run_folder("uid-1", "prepare")

    assert caught.value.reason is FailureReason.STORE_UNAVAILABLE
    assert caught.value.exit_code is ExitCode.STORE_UNAVAILABLE


def test_a_full_disk_while_staging_is_the_stores_failure(store: Store) -> None:
    message = r"^store: pvc://artifacts/team/\.staging/\w+: No space left on device"
    with pytest.raises(StageFailure, match=message) as caught, store.staging():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert caught.value.reason is FailureReason.STORE_UNAVAILABLE


def test_a_file_elsewhere_while_staging_is_not_the_stores_failure(store: Store) -> None:
    with pytest.raises(FileNotFoundError), store.staging():
        Path("/nowhere/base-model").read_bytes()


def test_a_stored_result_has_nothing_that_binds_it_to_a_job(tmp_path: Path) -> None:
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path)))
    result = StageResult(
        stage="prepare", run="uid-1", outcome="Succeeded", prepare=PrepareResult(unchanged=True)
    )

    store.write_result(result.model_copy(update={"nonce": "0f", "config_digest": "1e"}))

    assert store.read_result("uid-1", "prepare") == result


def test_a_stored_result_of_a_trainer_of_a_newer_contract_is_read(tmp_path: Path) -> None:
    store = open_store(StoreConfig(uri="pvc://artifacts", path=str(tmp_path)))
    result = StageResult(stage="prepare", run="uid-1", outcome="Succeeded")
    store.write_result(result)
    file = tmp_path / "runs" / "uid-1" / "prepare" / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "contract": 9, "news": {"a": 1}}))

    assert store.read_result("uid-1", "prepare") == result


def test_reading_ahead_brings_an_artifact_into_the_page_cache(store: Store) -> None:
    ref = publish(store, {"config.json": "{}", "model.safetensors": "w" * (1 << 20)})
    file = store.artifact(ref) / "model.safetensors"
    forget(file)
    if any(cached_pages(file)):
        pytest.skip("the file system of the temporary folder keeps all pages in memory")

    read_ahead(store, ref).join()

    assert all(cached_pages(file))


def test_files_that_are_larger_than_half_of_the_memory_are_not_read_ahead(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(store, {"model.safetensors": "w" * (1 << 20)})
    file = store.artifact(ref) / "model.safetensors"
    forget(file)
    if any(cached_pages(file)):
        pytest.skip("the file system of the temporary folder keeps all pages in memory")
    monkeypatch.setattr(mounted, "pod_memory_bytes", lambda: 1 << 20)

    read_ahead(store, ref).join()

    assert not any(cached_pages(file))


def test_what_cannot_be_read_ahead_is_left_to_its_reader(store: Store) -> None:
    ref = publish(store, {"model.safetensors": "weights"})
    (store.artifact(ref) / "model.safetensors").unlink()

    read_ahead(store, ref).join()

    with pytest.raises(StageFailure, match="it is missing"):
        store.artifact(ref)


def forget(file: Path) -> None:
    """Remove a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_pages(file: Path) -> list[bool]:
    """Whether each page of a file is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        code = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), pages)
        del start
        assert code == 0, os.strerror(ctypes.get_errno())
    return [bool(page & 1) for page in pages]
