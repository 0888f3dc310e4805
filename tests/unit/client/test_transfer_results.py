# SPDX-License-Identifier: Apache-2.0
"""Which files a download brings, and that no name of the store leads out of its folder."""

import hashlib
import json
from pathlib import Path

import pytest

from finetune_client.backend import Backend, Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.transfer.copying import Carrier, Patience
from finetune_client.transfer.results import Fetched, Part, What, fetch, find_parts
from finetune_client.transfer.stored_files import StoredFiles
from finetune_client.transfer.stores import Stores
from finetune_trainer.manifest import Manifest

RUN: Object = {
    "kind": "FineTuneJob",
    "metadata": {"name": "routing", "uid": "u-1"},
    "status": {
        "phase": "Succeeded",
        "training": {"reportUri": "pvc://artifacts/runs/u-1/train/report.html"},
        "evaluation": {
            "checkpoint": "routing-2",
            "reportUri": "pvc://artifacts/runs/u-1/evaluate/evaluation.html",
        },
        "checkpoints": [{"name": "routing-1", "best": True}, {"name": "routing-2"}],
    },
}


class Folder:
    """A folder of local runs."""

    namespace = "local"

    def __init__(self, root: Path, *objects: Object) -> None:
        self.root = root
        self.objects = {(each["kind"], each["metadata"]["name"]): each for each in objects}

    def get(self, kind: str, name: str) -> Object | None:
        return self.objects.get((kind, name))

    def store_folder(self, uri: str) -> Path:
        assert uri == "pvc://artifacts"
        return self.root


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "store"
    for path in ("runs/u-1/train/report.html", "runs/u-1/evaluate/evaluation.html"):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(path)
    (root / "runs/u-1/evaluate/predictions.jsonl").write_text("{}\n")
    return root


def checkpoint(store: Path, name: str = "routing-2", **files: str) -> Object:
    """A Checkpoint with these weights."""
    folder = store / "checkpoints" / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_text(content)
    manifest = Manifest.of(folder)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return {
        "kind": "Checkpoint",
        "metadata": {"name": name},
        "spec": {
            "uri": f"pvc://artifacts/checkpoints/{name}",
            "digest": manifest.digest,
            "lineage": {"job": {"name": "routing", "uid": "u-1"}},
        },
        "status": {"evaluations": [{"reportUri": RUN["status"]["evaluation"]["reportUri"]}]},
    }


def download(folder: Path, backend: Folder, parts: list[Part]) -> Fetched:
    patience = Patience(pause=lambda _: None)
    with Stores(backend, print) as files:  # type: ignore[arg-type]
        return fetch(parts, folder, files, patience, lambda _: Carrier(patience=patience))


def parts(backend: Folder, name: str, *what: What) -> list[Part]:
    found: Backend = backend  # type: ignore[assignment]
    return find_parts(found, name, what)


@pytest.mark.parametrize("name", ["routing", "routing-2"])
def test_a_run_and_its_checkpoint_bring_weights_pages_and_answers(
    store: Path, tmp_path: Path, name: str
) -> None:
    backend = Folder(store, RUN, checkpoint(store, adapter="weights"))
    fetched = download(tmp_path / "results", backend, parts(backend, name))
    found = {
        str(file.relative_to(tmp_path / "results"))
        for file in (tmp_path / "results").rglob("*")
        if file.is_file()
    }
    assert found == {
        "weights/adapter", "weights/manifest.json", "train/report.html", "evaluate/evaluation.html",
        "evaluate/predictions.jsonl",
    }  # fmt: skip
    assert fetched.files == 5
    again = download(tmp_path / "results", backend, parts(backend, name))
    assert (again.files, again.kept) == (5, 5)


def test_only_the_requested_parts_come(store: Path, tmp_path: Path) -> None:
    backend = Folder(store, RUN, checkpoint(store, adapter="weights"))
    download(tmp_path / "results", backend, parts(backend, "routing", What.ANSWERS))
    assert [file.name for file in (tmp_path / "results").rglob("*.*")] == ["predictions.jsonl"]


def test_without_an_evaluation_the_best_checkpoint_is_that_of_the_run(store: Path) -> None:
    run = {**RUN, "status": {"phase": "Evaluating", "checkpoints": RUN["status"]["checkpoints"]}}
    backend = Folder(store, run, checkpoint(store, "routing-1", adapter="weights"))
    (part,) = parts(backend, "routing")
    assert part.uri == "pvc://artifacts/checkpoints/routing-1"
    with pytest.raises(OperationError, match=r"FineTuneJob routing has no report \(phase: Evaluating\)"):
        parts(backend, "routing", What.WEIGHTS, What.REPORT)


def test_a_run_of_the_same_name_is_not_that_of_an_old_checkpoint(store: Path) -> None:
    other = {**RUN, "metadata": {"name": "routing", "uid": "u-2"}}
    found = parts(Folder(store, other, checkpoint(store, adapter="weights")), "routing-2")
    assert "pvc://artifacts/runs/u-1/train/report.html" not in [part.uri for part in found]


def test_a_checkpoint_whose_manifest_was_exchanged_is_refused(store: Path, tmp_path: Path) -> None:
    backend = Folder(store, RUN, checkpoint(store, adapter="weights"))
    (store / "checkpoints/routing-2/manifest.json").write_text("{}")
    with pytest.raises(OperationError, match=r"its manifest\.json has another digest than spec\.digest"):
        download(tmp_path / "results", backend, parts(backend, "routing", What.WEIGHTS))
    assert not (tmp_path / "results").exists()


def test_a_removed_folder_is_named(store: Path, tmp_path: Path) -> None:
    backend = Folder(store, RUN)
    (store / "runs/u-1/train/report.html").unlink()
    with pytest.raises(OperationError, match=r"train/report\.html does not exist any more"):
        download(tmp_path / "results", backend, parts(backend, "routing", What.REPORT))


def crafted(store: Path, *names: str) -> Part:
    """Weights whose manifest, with the right digest, has these names."""
    entries = [{"path": name, "bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()} for name in names]
    content = json.dumps({"version": 1, "files": entries}).encode()
    folder = store / "checkpoints" / "crafted"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(content)
    return Part(
        What.WEIGHTS, "pvc://artifacts/checkpoints/crafted", "weights",
        f"sha256:{hashlib.sha256(content).hexdigest()}",
    )  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        ("../../../.ssh/authorized_keys",),
        ("/etc/cron.d/x",),
        ("a/./b",),
        ("a\\..\\b",),
        ("evil\x1b]0;title\x07",),
        ("\u202etxt.exe",),
        (".adapter.partial",),
        ("Adapter", "adapter"),
        ("manifest.json",),
    ],
)
def test_a_hostile_name_of_the_store_is_not_written(
    store: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    part = crafted(store, *names)
    with pytest.raises(OperationError, match=r"not written|is not valid|differ by case") as refusal:
        download(tmp_path / "results", Folder(store), [part])
    assert "\x1b" not in str(refusal.value)
    assert sorted(set(tmp_path.rglob("*")) - set(before)) == [
        store / "checkpoints", store / "checkpoints/crafted", store / "checkpoints/crafted/manifest.json"
    ]  # fmt: skip


def test_a_link_in_the_target_is_not_followed(store: Path, tmp_path: Path) -> None:
    backend = Folder(store, RUN, checkpoint(store, adapter="weights"))
    (tmp_path / "results").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "results" / "weights").symlink_to(tmp_path / "home")
    with pytest.raises(OperationError, match="weights is a symbolic link out of") as refusal:
        download(tmp_path / "results", backend, parts(backend, "routing", What.WEIGHTS))
    assert refusal.value.exit_code == ProgramExit.EXISTS
    assert list((tmp_path / "home").iterdir()) == []


def test_a_link_in_the_store_shows_nothing_of_its_host(store: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    page = store / "runs/u-1/train/report.html"
    page.unlink()
    page.symlink_to(tmp_path / "secret")
    backend = Folder(store, RUN)
    with pytest.raises(OperationError, match="leads out of the store"):
        download(tmp_path / "results", backend, parts(backend, "routing", What.REPORT))


def test_a_download_without_room_is_refused_before_the_first_byte(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Folder(store, RUN)

    class Huge(StoredFiles):
        def size(self, path: str) -> int:
            return len(path) << 55

    monkeypatch.setattr("finetune_client.transfer.stores.StoredFiles", Huge)
    with pytest.raises(OperationError, match=r"results needs .* TiB, but .* left: free some"):
        download(tmp_path / "results", backend, parts(backend, "routing", What.REPORT))
    assert not (tmp_path / "results").exists()
