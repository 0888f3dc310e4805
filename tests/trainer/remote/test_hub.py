# SPDX-License-Identifier: Apache-2.0
"""`hf://` sources and base models, through the Hub's own library, from a fake server."""

import os
import shutil
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_trainer.contract.accelerators import DeviceFacts
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.references import ArtifactRef, Owner, ParentCheckpoint, SecretMount
from finetune_trainer.contract.results import PreflightResult
from finetune_trainer.contract.serving import DownloadConfig
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.manifest import OnBytes, ignore_bytes
from finetune_trainer.preflight import stage as preflight
from finetune_trainer.preflight.base_model import download_to_store, open_model, store_model
from finetune_trainer.remote import hub as hub_client
from finetune_trainer.remote import source
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, STALL_SECONDS, RemoteFile, RemoteFolder
from finetune_trainer.remote.source import RemoteSource
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext, StageMeter
from finetune_trainer.store import download_lock
from finetune_trainer.store.mounted import MountedStore
from tests.trainer.preparing import json_lines, pairs
from tests.trainer.remote.hubserver import HubServer, Repository
from tests.trainer.remote.reading import failure, prepare, read
from tests.trainer.remote.webserver import WebServer
from tests.trainer.workbench import Workbench
from tools.models import tiny

ROWS = json_lines(pairs(40)).encode()
MODEL = "hf://team/tiny"
DEADLINE_SECONDS = 60.0


@pytest.fixture
def secret(hub: HubServer, tmp_path: Path) -> SecretMount:
    return hub.secret(tmp_path / "secret", token="t0ken")


@pytest.fixture
def model(hub: HubServer) -> Repository:
    """The tiny model, with other files that repositories on the Hub have."""
    repository = hub.repositories["models/team/tiny"] = Repository()
    repository.commit(
        {path.name: path.read_bytes() for path in tiny().iterdir()}
        | {"pytorch_model.bin": b"pickled", "onnx/model.onnx": b"graph", ".gitattributes": b""}
    )
    return repository


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def run_preflight(bench: Workbench, secret: SecretMount, **settings: Any) -> PreflightResult:
    return preflight.run(preflight_config(bench, secret, **settings), bench.context())


def preflight_config(bench: Workbench, secret: SecretMount, **settings: Any) -> PreflightConfig:
    remote = {"base_model_uri": MODEL, "base_model_path": None, "base_model_credentials": secret, **settings}
    return bench.preflight_config(tiny(), bench.dataset()).model_copy(update=remote)


def store_base_model(config: PreflightConfig, context: StageContext) -> Digest:
    """The download of preflight without the rest, which replaces functions of torch for its whole process."""
    with open_model(config, context) as model:
        return store_model(model, config, context, StageMeter(context, model.work)).digest


def contents(hub: HubServer) -> list[str]:
    """Return the names of the files whose content was sent."""
    return sorted(seen.path.rpartition("/")[2] for seen in hub.seen if "/resolve/" in seen.path)


def test_rows_of_a_dataset_at_the_hub_are_read_at_the_commit_that_is_recorded(
    hub: HubServer, secret: SecretMount, tmp_path: Path
) -> None:
    repository = hub.repositories["datasets/team/tickets"] = Repository()
    first = repository.commit({"data/rows.jsonl": ROWS, "README.md": b"tickets"})
    repository.commit({"data/rows.jsonl": ROWS * 2})
    hub.authorization = "Bearer t0ken"

    result = prepare(tmp_path, f"hf://datasets/team/tickets@{first}/data/rows.jsonl", secret)

    assert (result.sources[0].revision, result.statistics.source_rows) == (first, 40)


def test_a_folder_of_a_dataset_gives_its_rows_and_nothing_else(
    hub: HubServer, secret: SecretMount, tmp_path: Path
) -> None:
    repository = hub.repositories["datasets/team/tickets"] = Repository()
    commit = repository.commit({"README.md": b"tickets", "a.jsonl": ROWS, "deeper/b.jsonl": ROWS})

    result = prepare(tmp_path, "hf://datasets/team/tickets", secret)

    assert (result.sources[0].revision, result.statistics.source_rows) == (commit, 40)
    assert contents(hub) == ["a.jsonl"]


def test_a_pattern_takes_files_of_a_dataset_and_an_old_commit_is_not_downloaded_again(
    hub: HubServer, secret: SecretMount, tmp_path: Path
) -> None:
    repository = hub.repositories["datasets/team/tickets"] = Repository()
    repository.commit({"data/train-0.jsonl": ROWS, "data/other.jsonl": b"no row"})
    uri = "hf://datasets/team/tickets/data/train-*.jsonl"

    first = prepare(tmp_path, uri, secret)
    again = prepare(tmp_path, uri, secret, known_version=first.sources[0].version)

    assert (first.statistics.source_rows, again.unchanged) == (40, True)
    assert contents(hub) == ["train-0.jsonl"]


def test_a_model_comes_into_the_store_without_what_is_no_part_of_it(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    hub.authorization = "Bearer t0ken"

    result = run_preflight(bench, secret, base_model_revision="main")

    assert result.base_model_revision == model.main
    assert result.base_model == bench.preflight().base_model
    assert contents(hub) == sorted(path.name for path in tiny().iterdir() if path.name != "manifest.json")
    assert not (bench.root / "store" / "runs" / "1f1f" / "preflight" / "base-model").exists()


def test_a_model_is_downloaded_once_a_store(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    first = run_preflight(bench, secret)
    hub.seen.clear()

    assert run_preflight(bench, secret) == first

    assert contents(hub) == []
    # Another commit is another model.
    model.commit({**model.commits[model.main], "README.md": b"changed"})
    assert run_preflight(bench, secret).base_model_revision == model.main
    assert "model.safetensors" in contents(hub)


def test_stages_that_did_not_see_each_others_download_keep_one_model(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    first = run_preflight(bench, secret, run="one")
    models = bench.root / "store" / "models"
    shutil.rmtree(models / "by-source")

    assert run_preflight(bench, secret, run="two").base_model == first.base_model

    assert [seen.path for seen in hub.seen if "model.safetensors" in seen.path] != []
    assert len([path for path in models.iterdir() if path.name != "by-source"]) == 1


class Pauses(Stop):
    """The stop of a stage, which also says when the stage first pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.begun.set()
        return super().wait(timeout)


def test_runs_that_start_together_download_a_model_once(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_lock, "POLL_SECONDS", 0.05)
    begun, waiting = threading.Event(), Pauses()
    download = RemoteSource.download

    def slow(self: RemoteSource, files: Iterable[RemoteFile], *arguments: Any) -> None:
        wanted = list(files)
        if "model.safetensors" in {file.name for file in wanted}:
            begun.set()
            # Both runs are threads here, and the start of the second one closes the hub's client of the
            # process.
            assert waiting.begun.wait(DEADLINE_SECONDS)
        download(self, wanted, *arguments)

    monkeypatch.setattr(RemoteSource, "download", slow)
    configs = [preflight_config(bench, secret, run=run) for run in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(store_base_model, configs[0], bench.context())
        assert begun.wait(DEADLINE_SECONDS)
        second = pool.submit(store_base_model, configs[1], replace(bench.context(), stop=waiting))

        assert second.result() == first.result()

    assert contents(hub).count("model.safetensors") == 1


def test_a_pod_that_ended_in_its_download_is_waited_for_no_longer_than_a_minute(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_lock, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(download_lock, "STALE_SECONDS", 0.5)
    run_preflight(bench, secret, run="one")
    models = bench.root / "store" / "models"
    (source,) = (models / "by-source").iterdir()
    source.unlink()
    (models.parent / "downloads" / source.name).write_text('{"run": "gone", "number": 3}')

    run_preflight(bench, secret, run="two")

    assert contents(hub).count("model.safetensors") == 2
    assert (models.parent / "downloads" / source.name).read_text() == ""


def test_a_download_that_fails_leaves_its_turn_to_the_next(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    with pytest.raises(StageFailure):
        run_preflight(bench, secret, run="one", base_model_digest=f"sha256:{'0' * 64}")

    run_preflight(bench, secret, run="two")

    assert contents(hub).count("model.safetensors") == 2


def parent(bench: Workbench) -> ParentCheckpoint:
    """Publish a full model. Preflight checks only that the store has it."""
    with bench.store.staging() as staging:
        (staging / "model.safetensors").write_bytes(b"weights")
        digest = bench.store.publish("checkpoints", staging)
    return ParentCheckpoint(name="tuned", digest=digest, type="Full")


def test_the_base_model_of_a_parent_is_fetched_again_only_where_the_store_has_lost_it(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    first = run_preflight(bench, secret)
    recorded = {
        "parent": parent(bench),
        "base_model_digest": first.base_model,
        "base_model_revision": first.base_model_revision,
    }
    model.commit({**model.commits[model.main], "README.md": b"changed"})
    hub.seen.clear()

    assert run_preflight(bench, secret, **recorded) == first
    assert hub.seen == []

    assert run_preflight(bench, secret, **recorded, base_model_named=True) == first
    assert hub.seen != []
    assert "model.safetensors" not in contents(hub)

    base_model = ArtifactRef(kind="models", digest=first.base_model)
    bench.store.delete(base_model)
    assert run_preflight(bench, secret, **recorded) == first
    assert "model.safetensors" in contents(hub)
    assert bench.store.has(base_model)


def test_another_base_model_than_the_parents_is_refused_with_both(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench
) -> None:
    recorded = f"sha256:{'0' * 64}"
    with pytest.raises(StageFailure) as caught:
        run_preflight(bench, secret, parent=parent(bench), base_model_digest=recorded)

    assert caught.value.reason == FailureReason.BASE_MODEL_DIGEST_MISMATCH
    assert f"Checkpoint tuned was trained from {recorded}" in caught.value.message
    assert bench.preflight().base_model in caught.value.message


class Kill(BaseException):
    """The end of a pod without a signal."""


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("end", [Preempted, Kill])
@pytest.mark.parametrize("links", [True, False])
def test_a_pod_that_ends_while_the_store_takes_the_model_is_followed_by_one_that_goes_on(
    hub: HubServer,
    secret: SecretMount,
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    *,
    end: type[BaseException],
    links: bool,
) -> None:
    publish = MountedStore.publish

    def stopped(store: MountedStore, kind: Any, staging: Path, on_bytes: OnBytes = ignore_bytes) -> str:
        if kind == "models":
            raise end
        return publish(store, kind, staging, on_bytes)

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(MountedStore, "publish", stopped)
    with pytest.raises(end):
        run_preflight(bench, secret)
    monkeypatch.setattr(MountedStore, "publish", publish)
    hub.seen.clear()

    assert run_preflight(bench, secret).base_model == bench.preflight().base_model

    assert (contents(hub) == []) is links


def no_links(source: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted", str(source))


@pytest.mark.usefixtures("model")
def test_a_model_of_the_same_name_at_another_hub_is_another_model(
    hub: HubServer, secret: SecretMount, bench: Workbench, tmp_path: Path
) -> None:
    run_preflight(bench, secret)
    with HubServer() as mirror:
        mirror.repositories = dict(hub.repositories)

        run_preflight(bench, mirror.secret(tmp_path / "mirror"))

    assert "model.safetensors" in contents(mirror)


def test_the_hubs_client_has_the_limits_on_connecting_and_on_silence() -> None:
    client = hub_client._client_factory(None, "https://huggingface.co")()

    assert (client.timeout.connect, client.timeout.read) == (CONNECT_SECONDS, STALL_SECONDS)


def test_the_token_goes_to_the_hub_and_not_to_where_it_keeps_contents(
    hub: HubServer, model: Repository, secret: SecretMount, web: WebServer, tmp_path: Path
) -> None:
    with WebServer() as storage:
        hub.content_host = storage.endpoint
        storage.files = {f"/{model.main}/{name}": body for name, body in model.commits[model.main].items()}

        found = read(tmp_path / "model", MODEL, secret)

    assert found["config.json"] == (tiny() / "config.json").read_bytes()
    assert {seen.authorization for seen in hub.seen} == {"Bearer t0ken"}
    assert {seen.authorization for seen in storage.seen} == {None}


def test_a_token_in_the_environment_is_nobodys(
    hub: HubServer, model: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "somebody-elses")

    read(tmp_path / "model", MODEL, hub.secret(tmp_path / "secret"))

    assert {seen.authorization for seen in hub.seen} == {None}


def test_weights_that_are_not_what_the_hub_says_are_not_taken(
    hub: HubServer, model: Repository, secret: SecretMount, bench: Workbench, impatient: None
) -> None:
    weights = model.commits[model.main]["model.safetensors"]
    with WebServer() as storage:
        hub.content_host = storage.endpoint
        storage.files = {f"/{model.main}/{name}": body for name, body in model.commits[model.main].items()}
        storage.files[f"/{model.main}/model.safetensors"] = weights[:-1] + b"!"

        with pytest.raises(StageFailure, match=r"model\.safetensors does not have the sha256") as caught:
            run_preflight(bench, secret)

    assert caught.value.reason is FailureReason.SOURCE_UNAVAILABLE
    assert not list((bench.root / "store" / "models").glob("*"))


def leave(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    """Let the disk report this free space."""
    found = SimpleNamespace(total=1 << 40, free=free_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: found)


@pytest.mark.usefixtures("model")
def test_a_model_that_the_disk_has_no_room_for_is_refused_before_its_weights_are_requested(
    hub: HubServer, secret: SecretMount, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (tiny() / "model.safetensors").stat().st_size
    leave(monkeypatch, weights - 1024)

    with pytest.raises(StageFailure) as caught:
        run_preflight(bench, secret)

    assert (caught.value.reason, caught.value.exit_code) == (
        FailureReason.STORE_UNAVAILABLE,
        ExitCode.BAD_CONFIG,
    )
    assert caught.value.message == (
        "store: pvc://artifacts/runs/1f1f/preflight/base-model: baseModel hf://team/tiny needs 547.4 KiB, and"
        " 546.4 KiB are free; free space on this volume, or use a larger claim"
    )
    assert "config.json" in contents(hub)
    assert "model.safetensors" not in contents(hub)

    leave(monkeypatch, weights)
    assert run_preflight(bench, secret).base_model == bench.preflight().base_model


@pytest.mark.parametrize("missing", [0, 1])
def test_a_download_that_resumes_needs_room_for_the_missing_bytes_only(
    hub: HubServer,
    model: Repository,
    secret: SecretMount,
    bench: Workbench,
    monkeypatch: pytest.MonkeyPatch,
    *,
    missing: int,
) -> None:
    config = preflight_config(bench, secret)
    weights = model.commits[model.main]["model.safetensors"]
    half = len(weights) // 2
    ranges = source._range

    def first_half(folder: RemoteFolder, file: RemoteFile, start: int, end: int) -> bytes:
        if end > half:
            raise Kill
        return ranges(folder, file, start, end)

    monkeypatch.setattr(source, "CHUNK_BYTES", half)
    monkeypatch.setattr(source, "_range", first_half)
    with pytest.raises(Kill):
        store_base_model(config, bench.context())
    monkeypatch.setattr(source, "_range", ranges)
    leave(monkeypatch, len(weights) - half - missing)
    hub.seen.clear()

    if missing:
        with pytest.raises(StageFailure, match=r"needs 273\.7 KiB, and 273\.7 KiB are free"):
            store_base_model(config, bench.context())
        assert "model.safetensors" not in contents(hub)
    else:
        store_base_model(config, bench.context())
        assert {seen.range for seen in hub.seen if seen.path.endswith("model.safetensors")} == {
            f"bytes={half}-{len(weights) - 1}"
        }


@pytest.mark.usefixtures("model")
def test_the_base_model_of_an_endpoint_is_refused_in_the_same_way(
    hub: HubServer, secret: SecretMount, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(monkeypatch, (tiny() / "model.safetensors").stat().st_size - 1024)
    owner = Owner(kind="InferenceDeployment", namespace="team", name="assistant", uid="0f0f")
    config = DownloadConfig(
        owner=owner,
        run=owner.uid,
        store=bench.store_config,
        base_model_uri=MODEL,
        base_model_credentials=secret,
    )

    with pytest.raises(StageFailure, match=r"baseModel hf://team/tiny needs 547\.4 KiB, and 546\.4 KiB"):
        download_to_store(config)

    assert "model.safetensors" not in contents(hub)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"device": DeviceFacts(memory_bytes=1 << 20)}, "GiB per device of 0.00098"),
        ({"host_memory_bytes": 1 << 20}, "GiB for train pods of 0.00098"),
    ],
)
def test_a_model_that_memory_has_no_room_for_is_refused_before_its_weights_are_requested(
    hub: HubServer, secret: SecretMount, bench: Workbench, memory: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageFailure, match=message) as caught:
        run_preflight(bench, secret, **memory)

    assert caught.value.reason is FailureReason.PREDICTED_OUT_OF_MEMORY
    assert "config.json" in contents(hub)
    assert "model.safetensors" not in contents(hub)
    assert not (bench.root / "store" / "runs" / "1f1f" / "preflight" / "base-model").exists()


@pytest.mark.parametrize(
    ("settings", "reason", "message"),
    [
        ({"base_model_uri": "hf://team/nothing"}, FailureReason.BASE_MODEL_NOT_FOUND, "check baseModel.uri"),
        ({"base_model_revision": "v9"}, FailureReason.BASE_MODEL_NOT_FOUND, "check baseModel.uri"),
        ({"base_model_uri": f"{MODEL}/onnx"}, FailureReason.BASE_MODEL_INVALID, "no weights"),
    ],
)
@pytest.mark.usefixtures("model")
def test_a_model_that_is_not_there_is_named(
    secret: SecretMount, bench: Workbench, settings: dict[str, Any], reason: FailureReason, message: str
) -> None:
    with pytest.raises(StageFailure, match=message) as caught:
        run_preflight(bench, secret, **settings)

    assert caught.value.reason is reason


def test_a_gated_model_says_which_secret_would_help(
    hub: HubServer, model: Repository, tmp_path: Path
) -> None:
    hub.authorization = "Bearer t0ken"

    found = failure(tmp_path, MODEL, hub.secret(tmp_path / "secret"))

    assert found.reason is FailureReason.ACCESS_DENIED
    assert "correct Secret credentials; its keys are endpoint, token, caBundle" in found.message
