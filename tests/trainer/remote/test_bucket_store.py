# SPDX-License-Identifier: Apache-2.0
"""The store in a bucket, on a real S3 server whose buckets are folders."""

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from finetune_trainer.contract.configs import CollectConfig
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.results import PrepareResult, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import Manifest
from finetune_trainer.remote import retries
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.store import DerivedRef, Store, bucket, open_store
from finetune_trainer.store.base import STALE_STAGING_SECONDS
from finetune_trainer.store.copies import copy_artifact
from finetune_trainer.train.state_folders import save_folder
from finetune_trainer.train.states.resume_states import remove_states
from tests.s3server import S3Server
from tests.trainer.processes import run
from tests.waiting import eventually

OWNER: Final = Owner(kind="FineTuneJob", namespace="team", name="routing", uid="1f1f")


class Pods:
    """Pods with one bucket, each with its own volume."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.bucket = f"b-{uuid.uuid4().hex[:12]}"
        self.objects = server.bucket(self.bucket) / "team"

    def config(self, **changes: str) -> StoreConfig:
        scratch = self.folder / uuid.uuid4().hex
        return self.server.store(scratch, f"s3://{self.bucket}/team", **changes)

    def store(self, stop: threading.Event | None = None) -> Store:
        """Open the store as a new pod does."""
        return open_store(self.config(), stop)


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path) -> Pods:
    return Pods(s3, tmp_path)


def publish(store: Store, files: dict[str, str]) -> ArtifactRef:
    with store.staging() as staging:
        for name, content in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(content)
        return ArtifactRef(kind="models", digest=store.publish("models", staging))


def folder_of(pods: Pods, ref: ArtifactRef) -> Path:
    return pods.objects / ref.kind / ref.digest.removeprefix("sha256:")


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_one_pod_publishes_another_reads(pods: Pods) -> None:
    ref = publish(pods.store(), {"config.json": "{}", "weights/part": "abc", "empty": ""})

    other = pods.store()

    assert other.has(ref)
    assert other.uri(ref) == f"s3://{pods.bucket}/team/models/{ref.digest.removeprefix('sha256:')}"
    folder = other.artifact(ref)
    assert files_below(folder) == ["config.json", "empty", "manifest.json", "weights/part"]
    assert (folder / "weights" / "part").read_text() == "abc"
    assert files_below(folder_of(pods, ref)) == files_below(folder)


def test_a_file_of_many_parts_arrives_whole(pods: Pods) -> None:
    content = os.urandom(1 << 20) * 50 + b"end"
    store = pods.store()
    with store.staging() as staging:
        (staging / "weights").write_bytes(content)
        ref = ArtifactRef(kind="models", digest=store.publish("models", staging))

    assert (pods.store().artifact(ref) / "weights").read_bytes() == content


def test_a_pod_downloads_an_artifact_once_and_what_it_published_never(pods: Pods) -> None:
    ref = publish(pods.store(), {"a": "1"})
    reader, writer = pods.store(), pods.store()
    first = reader.artifact(ref)
    publish(writer, {"b": "2"})
    written = publish(writer, {"b": "2"})
    for each in (ref, written):
        shutil.rmtree(folder_of(pods, each))

    assert reader.artifact(ref) == first
    assert (writer.artifact(written) / "b").read_text() == "2"


def test_processes_of_a_pod_share_one_download(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = publish(pods.store(), {"weights": "a" * 100})
    config, started, blocked = pods.config(), threading.Event(), threading.Event()
    copied: list[Path] = []

    def copy(store: Store, ref: ArtifactRef, target: Path) -> None:
        copied.append(target)
        started.set()
        assert blocked.wait(60)
        copy_artifact(store, ref, target)

    monkeypatch.setattr(bucket, "copy_artifact", copy)
    with ThreadPoolExecutor(3) as pool:
        ranks = [pool.submit(open_store(config, process=rank).artifact, ref) for rank in range(3)]
        assert started.wait(60)
        blocked.set()
        folders = {rank.result() for rank in ranks}

    assert len(copied) == 1
    assert folders == set(copied)
    assert files_below(copied[0]) == ["manifest.json", "weights"]


def test_a_process_that_waits_for_the_download_of_another_stops_at_a_signal(
    pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = publish(pods.store(), {"weights": "a" * 100})
    config, started, blocked, stop = pods.config(), threading.Event(), threading.Event(), threading.Event()

    def copy(store: Store, ref: ArtifactRef, target: Path) -> None:
        started.set()
        assert blocked.wait(60)

    monkeypatch.setattr(bucket, "copy_artifact", copy)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(open_store(config, process=0).artifact, ref)
        assert started.wait(60)
        second = open_store(config, stop, process=1)
        stop.set()
        with pytest.raises(Preempted):
            second.artifact(ref)
        blocked.set()
        first.result()


def test_processes_of_a_pod_write_into_folders_of_their_own(pods: Pods) -> None:
    config = pods.config()

    first, second = (open_store(config, process=rank).run_folder("1f1f", "train").path for rank in (0, 1))

    assert first != second


def test_equal_content_is_not_uploaded_again(pods: Pods) -> None:
    ref = publish(pods.store(), {"a": "1"})
    before = (folder_of(pods, ref) / "a").stat()

    assert publish(pods.store(), {"a": "1"}) == ref

    assert (folder_of(pods, ref) / "a").stat().st_mtime_ns == before.st_mtime_ns
    assert files_below(pods.objects / ".staging") == []


def test_an_artifact_without_its_manifest_is_none_and_is_completed(pods: Pods) -> None:
    ref = publish(pods.store(), {"a": "1", "b": "2"})
    (folder_of(pods, ref) / "manifest.json").unlink()
    (folder_of(pods, ref) / "a").write_text("half")
    assert not pods.store().has(ref)

    with pytest.raises(StageFailure, match="the store has no complete s3://") as caught:
        pods.store().artifact(ref)
    publish(pods.store(), {"a": "1", "b": "2"})

    assert caught.value.reason is FailureReason.ARTIFACT_NOT_FOUND
    assert (pods.store().artifact(ref) / "a").read_text() == "1"


SLOW_PUBLISH: Final = """
import os, sys
from pathlib import Path
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.store import open_store
store = open_store(StoreConfig.model_validate_json(sys.argv[1]))
with store.staging() as staging:
    for number in range(200):
        (staging / f"part-{number:03}").write_bytes(b"%d" % number * 100_000)
    print(store.publish("models", staging), flush=True)
"""


def test_an_upload_that_is_killed_never_counts(pods: Pods) -> None:
    arguments = [sys.executable, "-c", SLOW_PUBLISH, pods.config().to_json()]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    eventually("objects appear", lambda: len(list(pods.objects.glob("models/*/*"))) > 3, pause=0.01)
    process.kill()
    output, _ = process.communicate()
    (folder,) = (pods.objects / "models").iterdir()
    ref = ArtifactRef(kind="models", digest=f"sha256:{folder.name}")

    assert output == b""
    assert not pods.store().has(ref)
    assert len(files_below(pods.objects / ".staging")) == 1
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert pods.store().has(ref)
    assert len(Manifest.model_validate_json((folder / "manifest.json").read_bytes()).files) == 200


def test_an_upload_says_how_far_it_is_and_what_is_there_already_counts_as_uploaded(pods: Pods) -> None:
    uploaded: list[tuple[int, int]] = []
    known: list[int] = []

    def count(size: int) -> None:
        uploaded.append((size, len(list(pods.objects.glob("models/*/*")))))

    for on_bytes in (count, known.append):
        store = pods.store()
        with store.staging() as staging:
            for size, name in enumerate("abc", 1):
                (staging / name).write_text(name * size)
            store.publish("models", staging, on_bytes)

    assert uploaded == [(1, 1), (2, 2), (3, 3)]
    assert known == [6]


def test_an_upload_ends_when_the_pod_is_to_stop_and_never_counts(pods: Pods) -> None:
    def stop(_: int) -> None:
        raise Preempted

    store = pods.store()
    with store.staging() as staging:
        for name in "ab":
            (staging / name).write_text(name)
        with pytest.raises(Preempted):
            store.publish("models", staging, stop)

    (folder,) = (pods.objects / "models").iterdir()
    assert files_below(folder) == ["a"]
    assert publish(pods.store(), {"a": "a", "b": "b"}).digest == f"sha256:{folder.name}"


@pytest.mark.parametrize(
    ("content", "message"),
    [("2", "its sha256 is"), ("12", "it has 2 bytes, not 1"), (None, "it is missing")],
)
def test_a_damaged_object_is_named_and_nothing_is_kept(pods: Pods, content: str | None, message: str) -> None:
    ref = publish(pods.store(), {"sub/a": "1"})
    path = folder_of(pods, ref) / "sub" / "a"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    store = pods.store()

    for _ in range(2):
        with pytest.raises(StageFailure, match=f"sub/a was changed or damaged: {message}") as caught:
            store.artifact(ref)

    assert caught.value.reason is FailureReason.ARTIFACT_CORRUPT
    assert store.uri(ref) in caught.value.message


def test_a_deleted_artifact_leaves_nothing_and_can_be_deleted_again(pods: Pods) -> None:
    kept = publish(pods.store(), {"b": "2"})
    ref = publish(pods.store(), {"a": "1", "sub/b": "2"})

    for _ in range(2):
        pods.store().delete(ref)

    assert files_below(folder_of(pods, ref)) == []
    assert pods.store().has(kept)


def test_what_was_derived_from_an_artifact_is_found_by_name_and_goes_with_it(pods: Pods) -> None:
    store = pods.store()
    of = publish(store, {"rows": "abc"})
    with store.staging() as staging:
        (staging / "tokens").write_text("123")
        ref = DerivedRef(of, store.publish(of, staging))
    store.name_derived(ref, "encoded")

    other = pods.store()
    assert other.derived(of, "encoded") == ref
    assert other.derived(of, "unknown") is None
    assert files_below(other.artifact(ref)) == ["manifest.json", "tokens"]
    assert "rows" in files_below(other.artifact(of))
    other.delete(of)

    assert other.derived(of, "encoded") is None
    assert not folder_of(pods, of).exists()


def unfinished(pods: Pods, name: str, age_seconds: float) -> Path:
    """Create an upload that a killed pod left that long ago."""
    digits = name.encode().hex().rjust(64, "0")
    note, leftover = pods.objects / ".staging" / uuid.uuid4().hex, pods.objects / "models" / digits / "part"
    for path, content in ((note, f"models/{digits}"), (leftover, "half")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    then = time.time() - age_seconds
    os.utime(note, (then, then))
    return leftover


def test_unfinished_uploads_are_removed_after_a_week_unless_another_pod_is_at_it(pods: Pods) -> None:
    week = STALE_STAGING_SECONDS + 60
    old, young = unfinished(pods, "old", week), unfinished(pods, "young", 60)
    again = unfinished(pods, "again", week)
    unfinished(pods, "again", 60)

    publish(pods.store(), {"a": "1"})

    assert [path.exists() for path in (old, young, again)] == [False, True, True]
    assert len(files_below(pods.objects / ".staging")) == 2


def test_a_result_is_read_back_by_the_next_pod(pods: Pods) -> None:
    result = StageResult(
        stage="prepare", run="uid-1", outcome="Succeeded", prepare=PrepareResult(problem_count=2)
    )
    assert pods.store().read_result("uid-1", "prepare") is None

    pods.store().write_result(result)

    assert pods.store().read_result("uid-1", "prepare") == result
    ended = run(CollectConfig(owner=OWNER, run="uid-1", store=pods.config(), of="prepare"))
    assert (ended.code, ended.result) == (ExitCode.OK, result)


def test_an_old_state_stays_where_the_new_one_could_not_be_uploaded(pods: Pods) -> None:
    save_states(pods, 1)
    (pods.objects / "runs" / "uid-1" / "train" / "state" / "step-2").write_text("in the way")

    with pytest.raises(StageFailure):
        save_states(pods, 2)

    assert pods.store().run_folder("uid-1", "train").names("state") == {"step-1"}


def test_a_pod_whose_state_did_not_reach_the_bucket_has_failed(pods: Pods) -> None:
    def preempted(*, with_its_bucket: bool) -> None:
        with pods.store().run_folder("uid-1", "train") as folder:
            folder.names("state")  # as training does before its first step
            if not with_its_bucket:
                pods.objects.parent.rename(pods.folder / "lost")
            save_folder(folder, "state/step-1", lambda path: (path / "weights").touch())
            raise Preempted

    with pytest.raises(Preempted):
        preempted(with_its_bucket=True)
    with pytest.raises(StageFailure, match="check that the bucket exists"):
        preempted(with_its_bucket=False)


def save_states(pods: Pods, step: int) -> None:
    """Keep the state after a step, and remove the previous one, in a new pod."""
    with pods.store().run_folder("uid-1", "train") as folder:
        save_folder(folder, f"state/step-{step}", lambda path: (path / "weights").touch())
        folder.remove(f"state/step-{step - 1}")


def test_states_and_whole_runs_are_removed_from_a_bucket(pods: Pods) -> None:
    save_states(pods, 1)
    with pods.store().run_folder("uid-1", "train") as folder:
        folder.write("result.json", b"{}")
        remove_states(folder)
    assert [path.name for path in (pods.objects / "runs" / "uid-1" / "train").iterdir()] == ["result.json"]
    pods.store().delete_run("uid-1")
    pods.store().delete_run("uid-2")
    assert not (pods.objects / "runs" / "uid-1" / "train" / "result.json").exists()


def test_a_stopped_pod_does_not_download_to_the_end(pods: Pods) -> None:
    ref = publish(pods.store(), {"a": "1"})
    stop = threading.Event()
    store = pods.store(stop)
    stop.set()

    with pytest.raises(Preempted):
        store.artifact(ref)


@pytest.mark.parametrize(
    ("changes", "bucket", "message"),
    [
        ({}, "nothing-here", r"store s3://nothing-here/team.*check that the bucket exists"),
        ({"secretAccessKey": "wrong"}, None, "its credentials Secret must hold keys that may list, read"),
        ({"endpoint": "http://127.0.0.1:1"}, None, "check the endpoint in its credentials Secret"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_before_any_work(
    pods: Pods, changes: dict[str, str], bucket: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAX_ATTEMPTS", 1)
    pods.bucket = bucket or pods.bucket

    with pytest.raises(StageFailure, match=message) as caught:
        open_store(pods.config(**changes))

    assert caught.value.reason is FailureReason.STORE_UNAVAILABLE
    assert caught.value.exit_code is ExitCode.STORE_UNAVAILABLE
