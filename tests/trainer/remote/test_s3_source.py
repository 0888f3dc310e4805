# SPDX-License-Identifier: Apache-2.0
"""`s3://` sources and base models, from a real S3 server."""

import threading
import uuid
from pathlib import Path

import pytest

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight import stage as preflight
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.remote_folder import CHUNK_BYTES
from finetune_trainer.runtime.termination import Preempted, StageFailure
from tests.s3server import S3Server
from tests.trainer.preparing import json_lines, pairs
from tests.trainer.remote.reading import failure, prepare, read, source
from tests.trainer.workbench import Workbench
from tools.models import tiny

ROWS = json_lines(pairs(40)).encode()


@pytest.fixture
def bucket(s3: S3Server) -> Path:
    """A bucket of this test; its objects are the files in this folder."""
    return s3.bucket(f"b-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def secret(s3: S3Server, tmp_path: Path) -> SecretMount:
    return s3.secret(tmp_path / "secret")


def test_the_rows_in_a_folder_of_a_bucket_become_a_dataset(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    (bucket / "rows" / "old").mkdir(parents=True)
    (bucket / "rows" / "a.jsonl").write_bytes(ROWS)
    (bucket / "rows" / "b.jsonl").write_text(json_lines([{"prompt": "one", "completion": "more"}]))
    (bucket / "rows" / "notes.txt").write_text("not a row")
    (bucket / "rows" / "old" / "c.jsonl").write_text("no row either")

    result = prepare(tmp_path, f"s3://{bucket.name}/rows", secret)

    assert (result.statistics.source_rows, result.sources[0].revision) == (41, None)


def test_a_pattern_takes_the_objects_that_match(bucket: Path, secret: SecretMount, tmp_path: Path) -> None:
    (bucket / "rows").mkdir()
    (bucket / "rows" / "2026-01.jsonl").write_bytes(ROWS)
    (bucket / "rows" / "2025-12.jsonl").write_text(json_lines([{"prompt": "one", "completion": "more"}]))

    result = prepare(tmp_path, f"s3://{bucket.name}/rows/2026-*.jsonl", secret)

    assert result.statistics.source_rows == 40
    with pytest.raises(StageFailure, match=r"no file matches 2027-\*\.jsonl; the folder has: 2025-12\.jsonl"):
        prepare(tmp_path, f"s3://{bucket.name}/rows/2027-*.jsonl", secret)


def test_an_ordinary_secret_of_aws_opens_a_bucket_of_another_server(
    s3: S3Server, bucket: Path, tmp_path: Path
) -> None:
    (bucket / "rows.jsonl").write_bytes(ROWS)
    # Teams keep the keys of several providers in one Secret.
    secret = s3.ordinary_secret(tmp_path / "secret", HF_TOKEN="hf_none")

    assert read(tmp_path / "here", f"s3://{bucket.name}/rows.jsonl", secret) == {"rows.jsonl": ROWS}


def test_an_ordinary_secret_of_aws_with_a_wrong_key_is_denied(
    s3: S3Server, bucket: Path, tmp_path: Path
) -> None:
    secret = s3.ordinary_secret(tmp_path / "secret", AWS_SECRET_ACCESS_KEY="wrong")

    found = failure(tmp_path / "here", f"s3://{bucket.name}", secret)

    assert found.reason is FailureReason.ACCESS_DENIED
    assert "its keys are endpoint, accessKeyId, secretAccessKey" in found.message
    assert "or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in found.message


def test_without_an_endpoint_the_keys_of_aws_are_for_amazon_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere.example")
    secret = tmp_path / "secret"
    secret.mkdir()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}
    for key, value in keys.items():
        (secret / key).write_text(value)

    folder = open_filesystem("s3://rows/a", SecretMount(name="aws", path=str(secret)))

    assert folder.filesystem.s3.meta.endpoint_url == "https://s3.eu-west-1.amazonaws.com"
    assert folder.endpoint == "https://s3.amazonaws.com"


def test_objects_that_have_not_changed_are_not_downloaded_again(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    (bucket / "rows.jsonl").write_bytes(ROWS)
    uri = f"s3://{bucket.name}/rows.jsonl"
    first = prepare(tmp_path, uri, secret)

    again = prepare(tmp_path, uri, secret, known_version=first.sources[0].version)
    assert again.unchanged
    assert again.dataset is None

    (bucket / "rows.jsonl").write_bytes(ROWS + b'{"prompt": "one", "completion": "more"}\n')
    changed = prepare(tmp_path, uri, secret, known_version=first.sources[0].version)
    assert changed.statistics.source_rows == 41
    assert changed.sources[0].version != first.sources[0].version


def test_an_object_of_several_requests_arrives_whole(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    content = uuid.uuid4().bytes * (2 * CHUNK_BYTES // 16) + b"the end"
    (bucket / "rows.jsonl").write_bytes(content)

    assert read(tmp_path / "here", f"s3://{bucket.name}/rows.jsonl", secret) == {"rows.jsonl": content}


def test_the_next_pod_goes_on_with_what_one_that_was_stopped_has_left(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    content = uuid.uuid4().bytes * (3 * CHUNK_BYTES // 16)
    uri = f"s3://{bucket.name}/rows.jsonl"
    there = open_filesystem(uri, secret)
    there.filesystem.pipe_file(there.path, content)
    stop, counts = threading.Event(), list[int]()
    opened = source(uri, secret, stop=stop)
    with pytest.raises(Preempted):
        opened.download(opened.files, tmp_path, lambda count: stop.set() if count else None)

    again = source(uri, secret)
    again.download(again.files, tmp_path, counts.append)

    assert (tmp_path / "rows.jsonl").read_bytes() == content
    # The first count is the part that existed already.
    assert counts[0] == CHUNK_BYTES
    assert sum(counts) == len(content)


def test_what_is_here_whole_is_downloaded_again_only_if_it_was_changed(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    uri = f"s3://{bucket.name}/rows.jsonl"
    there = open_filesystem(uri, secret)
    there.filesystem.pipe_file(there.path, ROWS)
    read(tmp_path, uri, secret)
    first = (tmp_path / "rows.jsonl").stat()

    read(tmp_path, uri, secret)
    assert (tmp_path / "rows.jsonl").stat() == first

    there.filesystem.pipe_file(there.path, b"new")
    assert read(tmp_path, uri, secret) == {"rows.jsonl": b"new"}
    there.filesystem.pipe_file(there.path, ROWS)
    assert read(tmp_path, uri, secret) == {"rows.jsonl": ROWS}


def test_an_object_that_is_replaced_while_it_is_read_is_not_taken(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    uri = f"s3://{bucket.name}/rows.jsonl"
    there = open_filesystem(uri, secret)
    there.filesystem.pipe_file(there.path, ROWS)
    opened = source(uri, secret)

    with pytest.raises(StageFailure, match=r"rows\.jsonl was changed while it was read"):
        opened.download(
            opened.files, tmp_path / "here", lambda _: there.filesystem.pipe_file(there.path, b"new")
        )

    assert not (tmp_path / "here" / "rows.jsonl").exists()


def test_a_base_model_in_a_bucket_is_the_same_as_on_a_volume(
    bucket: Path, secret: SecretMount, tmp_path: Path
) -> None:
    there = open_filesystem(f"s3://{bucket.name}", secret)
    for path in tiny().iterdir():
        there.filesystem.pipe_file(f"{there.path}/{path.name}", path.read_bytes())
    bench = Workbench(tmp_path)
    remote = {"base_model_uri": there.uri, "base_model_path": None, "base_model_credentials": secret}
    config = bench.preflight_config(tiny(), bench.dataset()).model_copy(update=remote)

    result = preflight.run(config, bench.context())

    assert result == bench.preflight()
    # The store has the model now. The stage lists the bucket without reading it, or it would find the zeros.
    weights = bucket / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert preflight.run(config, bench.context()) == result


@pytest.mark.parametrize(
    ("place", "keys", "ending"),
    [
        (
            "",
            {"secretAccessKey": "wrong"},
            "AccessDenied: correct Secret artifacts-s3; its keys are",
        ),
        ("/nothing.jsonl", {}, "SourceNotFound: check source.uri"),
        ("-none/rows.jsonl", {}, "SourceNotFound: check source.uri"),
    ],
)
def test_what_cannot_be_read_says_what_to_correct(
    s3: S3Server, bucket: Path, place: str, keys: dict[str, str], ending: str
) -> None:
    folder = bucket.parent.with_name(f"secret-{bucket.name}")
    reason, _, advice = ending.partition(": ")

    found = failure(folder / "here", f"s3://{bucket.name}{place}", s3.secret(folder, **keys))

    assert found.reason == reason
    assert advice in found.message


def test_without_a_secret_and_a_role_a_bucket_is_read_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_filesystem("s3://bucket/rows", None).filesystem.anon
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/secrets/token")
    assert not open_filesystem("s3://bucket/rows", None).filesystem.anon
