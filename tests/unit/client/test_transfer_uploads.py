# SPDX-License-Identifier: Apache-2.0
"""What an upload consists of, where it goes, and what stays of an earlier one."""

import subprocess
from base64 import b64decode
from pathlib import Path

import pytest

from finetune_client.errors import OperationError
from finetune_client.transfer.copying import Carrier, Patience
from finetune_client.transfer.files import ConnectionLost
from finetune_client.transfer.stored_files import StoredFiles
from finetune_client.transfer.uploading import (
    MAX_CONFIGMAP_BYTES,
    build_configmap,
    configmap_uri,
    put_files,
    read_upload,
    store_path,
)
from finetune_operator.manifests.volumes import parse_source
from tests.unit.client.brokenfiles import BreakingFiles


def carrier() -> Carrier:
    return Carrier(patience=Patience(pause=lambda _: None))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model in the cache of a hub, whose files are links, next to what no upload needs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    (snapshot / "original").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (blobs / name).write_bytes(name.encode())
        (snapshot / name).symlink_to(blobs / name)
    (snapshot / "original" / "params.json").write_text("{}")
    (snapshot / ".cache").mkdir()
    (snapshot / ".cache" / "lock").touch()
    (snapshot / "linked").symlink_to(blobs)
    return snapshot


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def test_a_folder_is_named_by_what_sha256sum_says_of_its_files(folder: Path) -> None:
    upload = read_upload(folder)
    assert [file.name for file in upload.files] == [
        "config.json",
        "model.safetensors",
        "original/params.json",
    ]
    assert upload.left_out == (".cache", "linked")
    assert upload.is_model
    assert not upload.fits_configmap
    names = [file.name for file in upload.files]
    listed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    digest = subprocess.run(["sha256sum"], input=listed, capture_output=True, check=True).stdout.decode()
    assert store_path(upload, "team") == f"team/uploads/{digest.split()[0]}/snapshot"


def test_a_folder_arrives_in_one_step_and_only_once(folder: Path, store: Path) -> None:
    upload = read_upload(folder, "gemma")
    target = store / store_path(upload)
    sizes: list[bool] = []

    class Watched(StoredFiles):
        def write(self, path: str, offset: int, chunks: object) -> None:
            sizes.append(target.exists())
            super().write(path, offset, chunks)  # type: ignore[arg-type]

    assert put_files(upload, Watched(str(store)), "", "me", carrier())
    assert sizes == [False, False, False]
    assert (target / "original" / "params.json").read_text() == "{}"
    assert [file.name for file in (store / "uploads" / ".partial").iterdir()] == []

    again = BreakingFiles(str(store), ())
    assert not put_files(upload, again, "", "me", carrier())
    assert again.carried == 0


def test_a_lost_answer_to_the_last_step_is_no_failure(folder: Path, store: Path) -> None:
    upload = read_upload(folder)

    class LosesOneAnswer(StoredFiles):
        def publish(self, partial: str, path: str) -> None:
            super().publish(partial, path)
            raise ConnectionLost("no answer")

    assert put_files(upload, LosesOneAnswer(str(store)), "", "me", carrier())
    assert (store / store_path(upload) / "config.json").read_bytes() == b"config.json"


def test_a_damaged_copy_in_the_store_is_named_and_not_replaced(folder: Path, store: Path) -> None:
    upload = read_upload(folder)
    put_files(upload, StoredFiles(str(store)), "", "me", carrier())
    copy = store / store_path(upload) / "config.json"
    copy.write_text("damaged")
    with pytest.raises(OperationError, match=r"config\.json of the store is damaged, and nothing is overwr"):
        put_files(upload, StoredFiles(str(store)), "", "me", carrier())
    assert copy.read_text() == "damaged"


def test_a_store_without_room_is_refused_before_the_first_byte(folder: Path, store: Path) -> None:
    class Full(StoredFiles):
        def free_bytes(self) -> int:
            return 3

    with pytest.raises(OperationError, match="the store has 3 bytes left, but snapshot needs 30 bytes"):
        put_files(read_upload(folder), Full(str(store)), "", "me", carrier())
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tickets.csv", "tickets.csv"),
        ("Tickets März (2).csv", "Tickets-M-rz-2-.csv"),
        ("..x", "x"),
        ("ü", "file"),
    ],
)
def test_any_file_name_becomes_a_uri_that_a_dataset_accepts(tmp_path: Path, name: str, key: str) -> None:
    file = tmp_path / name
    file.write_text("question,answer\n")
    upload = read_upload(file)
    manifest = build_configmap(upload, None)
    uri = configmap_uri(upload, manifest)
    assert uri.endswith(f"/{key}")
    assert manifest["data"] == {key: "question,answer\n"}
    assert parse_source(uri) is not None
    assert parse_source(f"pvc://artifacts/{store_path(upload)}") is not None


def test_compressed_rows_keep_their_bytes_in_a_configmap(tmp_path: Path) -> None:
    content = bytes(range(256))
    (tmp_path / "rows.jsonl.gz").write_bytes(content)
    manifest = build_configmap(read_upload(tmp_path / "rows.jsonl.gz"), None)
    assert b64decode(manifest["binaryData"]["rows.jsonl.gz"]) == content


def test_the_files_of_a_folder_are_keys_of_one_configmap(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (rows / name).write_text(name)
    upload = read_upload(rows)
    manifest = build_configmap(upload, "tickets")
    assert configmap_uri(upload, manifest) == "configmap://tickets/*"
    assert manifest["data"] == {"train.jsonl": "train.jsonl", "test.jsonl": "test.jsonl"}
    assert parse_source("configmap://tickets/*") is not None


def test_the_size_decides_between_a_configmap_and_the_store(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for size, fits in ((MAX_CONFIGMAP_BYTES, True), (MAX_CONFIGMAP_BYTES + 1, False)):
        file.write_bytes(b"x" * size)
        assert read_upload(file).fits_configmap is fits


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "rows does not exist"),
        (lambda folder: folder.mkdir(), "rows has no files to upload"),
        (
            lambda folder: (folder.mkdir(), (folder / "a\x1b[2J").touch()),
            r"'a\\x1b\[2J' in .* has a name with",
        ),
        (lambda folder: (folder.mkdir(), (folder / "a").symlink_to("/dev/zero")), "is not a regular file"),
    ],
)
def test_what_cannot_be_uploaded_is_named(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "rows")  # type: ignore[operator]
    with pytest.raises(OperationError, match=message):
        read_upload(tmp_path / "rows")


@pytest.mark.parametrize("name", ["../x", "a b", "x" * 101, "-"])
def test_a_name_that_no_uri_can_have_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "rows.csv").touch()
    with pytest.raises(OperationError, match="must have at most 100 letters"):
        read_upload(tmp_path / "rows.csv", name)
