# SPDX-License-Identifier: Apache-2.0
"""`gs://` and `abfs://` sources, through their own clients, from fake servers."""

from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.remote import source
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.remote.remote_folder import CONNECT_SECONDS, STALL_SECONDS
from finetune_trainer.runtime.termination import StageFailure
from tests.trainer.preparing import json_lines, pairs
from tests.trainer.remote.cloudservers import AzureServer, CloudServer, GoogleServer
from tests.trainer.remote.reading import failure, prepare, read

ROWS = json_lines(pairs(40)).encode()

CLOUDS: list[Any] = [
    pytest.param(GoogleServer, "gs", {"token": "t0ken"}, id="google"),
    pytest.param(AzureServer, "abfs", {"accountName": "team", "accountKey": "a2V5"}, id="azure"),
]


@pytest.mark.parametrize(("kind", "scheme", "keys"), CLOUDS)
def test_the_rows_in_a_folder_become_a_dataset(
    kind: type[CloudServer], scheme: str, keys: dict[str, str], tmp_path: Path
) -> None:
    with kind() as server:
        server.files = {"rows/2030/a.jsonl": ROWS, "rows/2030/notes.txt": b"", "rows/2030/old/b.jsonl": ROWS}

        result = prepare(tmp_path, f"{scheme}://rows/2030", server.secret(tmp_path / "secret", **keys))

        assert result.statistics.source_rows == 40
        assert all(seen.authorization for seen in server.seen)


@pytest.mark.parametrize(("kind", "scheme", "keys"), CLOUDS)
def test_one_object_arrives_whole(
    kind: type[CloudServer], scheme: str, keys: dict[str, str], tmp_path: Path
) -> None:
    with kind() as server:
        server.files = {"rows/a.jsonl": ROWS}
        secret = server.secret(tmp_path / "secret", **keys)

        assert read(tmp_path / "here", f"{scheme}://rows/a.jsonl", secret) == {"a.jsonl": ROWS}
        missing = failure(tmp_path / "here", f"{scheme}://rows/b.jsonl", secret)
        assert missing.reason is FailureReason.SOURCE_NOT_FOUND


@pytest.mark.parametrize(("kind", "scheme", "keys"), CLOUDS)
def test_a_refusal_names_the_secret(
    kind: type[CloudServer], scheme: str, keys: dict[str, str], tmp_path: Path
) -> None:
    with kind() as server:
        server.authorization = "somebody else's"

        found = failure(tmp_path / "here", f"{scheme}://rows/a.jsonl", server.secret(tmp_path / "s", **keys))

        assert found.reason is FailureReason.ACCESS_DENIED
        assert "correct Secret credentials" in found.message


def test_an_azure_signature_takes_the_place_of_a_key(tmp_path: Path) -> None:
    with AzureServer() as server:
        server.files = {"rows/a.jsonl": ROWS}
        secret = server.secret(tmp_path / "secret", accountName="team", sasToken="?sv=2030&sig=s3cret")

        assert read(tmp_path / "here", "abfs://rows/a.jsonl", secret) == {"a.jsonl": ROWS}
        assert all("sig=s3cret" in seen.path for seen in server.seen)


def test_a_connection_string_of_azure_has_the_account_with_its_key(tmp_path: Path) -> None:
    with AzureServer() as server:
        server.files = {"rows/a.jsonl": ROWS}
        text = f"AccountName=team;AccountKey=a2V5;BlobEndpoint={server.endpoint}"
        secret = server.secret(tmp_path / "secret", AZURE_STORAGE_CONNECTION_STRING=text)

        assert read(tmp_path / "here", "abfs://rows/a.jsonl", secret) == {"a.jsonl": ROWS}
        assert all(seen.authorization for seen in server.seen)


def test_a_key_of_one_azure_account_is_not_used_for_another(tmp_path: Path) -> None:
    with AzureServer() as server:
        secret = server.secret(tmp_path / "secret", AZURE_STORAGE_ACCOUNT="team", AZURE_STORAGE_KEY="a2V5")

        with pytest.raises(StageFailure, match="names the account other, but Secret credentials is for team"):
            open_filesystem("abfs://rows@other.dfs.core.windows.net/a", secret)


def test_without_a_secret_the_uri_names_the_azure_account() -> None:
    account = open_filesystem("abfs://rows@team.dfs.core.windows.net/a.jsonl", None)

    assert (account.filesystem.account_url, account.path) == (
        "https://team.blob.core.windows.net",
        "rows/a.jsonl",
    )
    with pytest.raises(StageFailure, match="does not name an account"):
        open_filesystem("abfs://rows/a.jsonl", None)


def test_without_a_secret_google_is_asked_as_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)

    assert open_filesystem("gs://rows/a.jsonl", None).filesystem.credentials.credentials is None


@pytest.mark.parametrize(("kind", "scheme", "keys"), CLOUDS)
def test_a_folder_of_too_many_files_is_refused(
    kind: type[CloudServer],
    scheme: str,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source, "MAX_FILES", 2)
    with kind() as server:
        server.files = {f"rows/2030/{name}.jsonl": ROWS for name in "abc"}

        found = failure(tmp_path, f"{scheme}://rows/2030", server.secret(tmp_path / "secret", **keys))

    assert found.reason is FailureReason.SOURCE_TOO_LARGE
    assert "it has 3 files; the limits are 2 files" in found.message


def test_every_client_of_a_bucket_has_the_limits_on_connecting_and_on_silence() -> None:
    s3 = open_filesystem("s3://rows/a", None).filesystem
    google = open_filesystem("gs://rows/a", None).filesystem.session_kwargs["timeout"]
    azure = open_filesystem("abfs://rows@team.dfs.core.windows.net/a", None).filesystem._timeout_kwargs

    assert {
        (s3.config_kwargs["connect_timeout"], s3.config_kwargs["read_timeout"]),
        (google.sock_connect, google.sock_read),
        (azure["connection_timeout"], azure["read_timeout"]),
    } == {(CONNECT_SECONDS, STALL_SECONDS)}
