# SPDX-License-Identifier: Apache-2.0
"""Secrets of type `finetune.dev/credentials`, as mounted in a pod."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.remote.credentials import KEYS, Credentials, load_credentials
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.runtime.failure import StageFailure


def mounted(folder: Path, keys: dict[str, str]) -> SecretMount:
    """Mount a Secret as the kubelet does: the keys are links into a folder with two dots."""
    data = folder / "..2030_01_02"
    data.mkdir(parents=True)
    (folder / "..data").symlink_to(data)
    for key, value in keys.items():
        (data / key).write_text(value)
        (folder / key).symlink_to(folder / "..data" / key)
    return SecretMount(name="bucket-reader", path=str(folder))


def refusal(folder: Path, keys: dict[str, str], uri: str = "s3://rows/a.jsonl") -> str:
    with pytest.raises(StageFailure) as caught:
        open_filesystem(uri, load_credentials(mounted(folder, keys)))
    failure = caught.value
    assert (failure.reason, failure.exit_code) == (FailureReason.INVALID_CREDENTIALS, ExitCode.BAD_CONFIG)
    return failure.message


def test_every_key_is_read_without_the_line_end_that_editors_leave(tmp_path: Path) -> None:
    keys = {"endpoint": "https://s3.example/\n", "accessKeyId": "id\n", "secretAccessKey": "key\n"}

    found = load_credentials(mounted(tmp_path, keys))

    assert found is not None
    assert (found.endpoint, found.access_key_id) == ("https://s3.example", "id")
    assert found.secret_access_key is not None
    assert found.secret_access_key.get_secret_value() == "key"


def test_values_are_never_printed() -> None:
    secret = SecretStr("s3cret")
    credentials = Credentials(endpoint="https://hub.example", token=secret, username="me", password=secret)

    assert "s3cret" not in f"{credentials!r} {credentials} {credentials.model_dump_json()}"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "Secret bucket-reader: it does not exist in this namespace, or is empty"),
        ({"accessKeyId": "a", "secretAccessKey": "b"}, "key endpoint is missing"),
        ({"endpoint": "https://s3.example", "acessKeyId": "a"}, "key acessKeyId is unknown"),
        ({"endpoint": "https://s3.example", "access_key_id": "a"}, "key access_key_id is unknown"),
        ({"endpoint": "https://s3.example", "accessKeyId": "a"}, "key secretAccessKey is missing"),
        ({"endpoint": "https://s3.example", "sessionToken": "a"}, "key accessKeyId is missing"),
        ({"endpoint": "https://s3.example", "password": "a"}, "key username is missing"),
        ({"endpoint": "s3.example"}, "key endpoint: it must have the form https://HOST"),
        ({"endpoint": "https://me:secret@s3.example"}, "key endpoint: it must not contain a user name"),
        (
            {"endpoint": "https://s3.example", "caBundle": "none"},
            "key caBundle: it must contain PEM certificates",
        ),
        ({"endpoint": "https://s3.example", "token": "a"}, "key token is not valid for s3://"),
    ],
)
def test_what_is_wrong_with_a_secret_is_named_by_its_key(
    keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    found = refusal(tmp_path, keys)

    assert message in found
    assert "secret@" not in found


def test_a_service_accounts_key_must_be_its_json(tmp_path: Path) -> None:
    keys = {"endpoint": "https://storage.googleapis.com", "serviceAccountKey": "not json"}

    found = refusal(tmp_path, keys, "gs://rows/a")

    assert "key serviceAccountKey is not the JSON key of a service account" in found


def test_every_documented_key_is_one_of_the_credentials() -> None:
    fields = {field.alias for field in Credentials.model_fields.values()}

    assert {key for keys in KEYS.values() for key in keys} == fields - {"secret name"}


def test_without_a_secret_there_are_no_credentials() -> None:
    assert load_credentials(None) is None
