# SPDX-License-Identifier: Apache-2.0
"""Secrets with credentials, as mounted in a pod: our names of the keys, and those of the providers."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from pydantic import SecretStr

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.remote.credentials import (
    CONNECTION_STRING,
    KEYS,
    PROVIDER_KEYS,
    Credentials,
    load_credentials,
)
from finetune_trainer.remote.filesystem import open_filesystem
from finetune_trainer.runtime.logs import SCRUBBER
from finetune_trainer.runtime.termination import StageFailure

AZURE_TEAM: Final = "https://team.blob.core.windows.net"
SERVICE_ACCOUNT: Final = json.dumps({"type": "service_account", "private_key_id": "1", "private_key": "none"})


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
        open_filesystem(uri, mounted(folder, keys))
    failure = caught.value
    assert (failure.reason, failure.exit_code) == (FailureReason.INVALID_CREDENTIALS, ExitCode.BAD_CONFIG)
    return failure.message


def test_every_key_is_read_without_the_line_end_that_editors_leave(tmp_path: Path) -> None:
    keys = {"endpoint": "https://s3.example/\n", "accessKeyId": "id\n", "secretAccessKey": "key\n"}

    found = load_credentials(mounted(tmp_path, keys), "s3")

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
        ({"region": "eu-west-1", "caBundle": "a", "token": "b"}, "key token is not valid for s3://"),
        ({"endpoint": "https://s3.example", "acessKeyId": "a"}, "key acessKeyId is unknown"),
        ({"endpoint": "https://s3.example", "access_key_id": "a"}, "key access_key_id is unknown"),
        ({"endpoint": "https://s3.example", "accessKeyId": "a"}, "key secretAccessKey is missing"),
        ({"endpoint": "https://s3.example", "sessionToken": "a"}, "key accessKeyId is missing"),
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


HALF: list[tuple[str, dict[str, str], str]] = [
    ("s3", {"AWS_ACCESS_KEY_ID": "a"}, "key AWS_SECRET_ACCESS_KEY is missing; AWS_ACCESS_KEY_ID needs it"),
    (
        "s3",
        {"AWS_SECRET_ACCESS_KEY": "a"},
        "key AWS_ACCESS_KEY_ID is missing; AWS_SECRET_ACCESS_KEY needs",
    ),
    (
        "s3",
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "a", "AWS_SESSION_TOKEN": ""},
        "key AWS_ACCESS_KEY_ID is missing; AWS_SECRET_ACCESS_KEY needs it",
    ),
    ("s3", {"AWS_SESSION_TOKEN": "a"}, "key AWS_ACCESS_KEY_ID is missing; AWS_SESSION_TOKEN needs it"),
    ("s3", {"accessKeyId": "a", "region": "b"}, "key secretAccessKey is missing; accessKeyId needs it"),
    ("s3", {"HF_TOKEN": "a"}, "it has no key for s3://; valid keys are endpoint, accessKeyId"),
    ("s3", {"AWS_ACESS_KEY_ID": "a"}, "key AWS_ACESS_KEY_ID is unknown"),
    (
        "s3",
        {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "us-east-1"},
        "mean the same and have different values: remove one",
    ),
    (
        "s3",
        {"endpoint": "https://s3.example", "AWS_REGION": "eu-west-1", "HF_TOKEN": "c"},
        "key endpoint does not say which provider's keys it is for: write AWS_ENDPOINT_URL",
    ),
    ("s3", {"AWS_ENDPOINT_URL": "s3.example"}, "key AWS_ENDPOINT_URL: it must have the form https://HOST"),
    (
        "hf",
        {"token": "a"},
        "it names the server that token is for; add it, or write HF_TOKEN in place of",
    ),
    ("hf", {"caBundle": "a"}, "key endpoint is missing; it names the server that caBundle is for"),
    ("hf", {"AWS_ACCESS_KEY_ID": "a"}, "it has no key for hf://"),
    ("https", {"token": "a"}, "key endpoint is missing; it names the server that token is for"),
    ("https", {"HF_TOKEN": "a"}, "it has no key for https://"),
    ("https", {"endpoint": "https://web.example", "password": "a"}, "key username is missing"),
    (
        "abfs",
        {"AZURE_STORAGE_KEY": "a"},
        "key AZURE_STORAGE_ACCOUNT is missing; AZURE_STORAGE_KEY needs it, because it names the server",
    ),
    ("abfs", {"sasToken": "a"}, "key accountName is missing; sasToken needs it, because it names the server"),
    (
        "abfs",
        {"AZURE_STORAGE_ACCOUNT": "team"},
        "key AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN is missing; AZURE_STORAGE_ACCOUNT needs one of",
    ),
    (
        "abfs",
        {"AZURE_STORAGE_ACCOUNT": "team.evil.example/", "AZURE_STORAGE_KEY": "a2V5"},
        "key AZURE_STORAGE_ACCOUNT: it must have 3 to 24 lower-case letters and digits",
    ),
    (
        "abfs",
        {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=team"},
        "key AZURE_STORAGE_CONNECTION_STRING: it needs AccountName or BlobEndpoint, and AccountKey",
    ),
    ("abfs", {"AZURE_CLIENT_SECRET": "a"}, "key AZURE_CLIENT_SECRET is that of a service principal"),
    ("gs", {"token": "a"}, "key endpoint is missing; it names the server that token is for"),
]


@pytest.mark.parametrize(("scheme", "keys", "message"), HALF)
def test_half_of_a_providers_keys_is_an_error_that_names_the_missing_one(
    scheme: str, keys: dict[str, str], message: str, tmp_path: Path
) -> None:
    assert message in refusal(tmp_path, keys, f"{scheme}://rows/a")


def test_a_service_accounts_key_must_be_its_json(tmp_path: Path) -> None:
    keys = {"endpoint": "https://storage.googleapis.com", "serviceAccountKey": "not json"}

    found = refusal(tmp_path, keys, "gs://rows/a")

    assert "key serviceAccountKey is not the JSON key of a service account" in found


@pytest.mark.parametrize("key", ["serviceAccountKey", *PROVIDER_KEYS["gs"]])
def test_a_google_file_that_may_name_addresses_and_programs_is_refused(key: str, tmp_path: Path) -> None:
    fields = {"token_url": "http://10.0.0.1", "credential_source": {"executable": {"command": "/bin/sh"}}}
    found = json.dumps({"type": "external_account", **fields})

    message = refusal(tmp_path, {key: found}, "gs://rows/a")

    assert f"key {key} is not the JSON key of a service account: it has type external_account" in message
    assert "/bin/sh" not in message


@pytest.mark.parametrize(
    ("scheme", "keys", "endpoint"),
    [
        ("hf", {"HF_TOKEN": "a"}, "https://huggingface.co"),
        ("hf", {"HF_TOKEN": "a", "HF_ENDPOINT": "https://hub.example"}, "https://hub.example"),
        ("hf", {"HF_TOKEN": "a", "endpoint": "https://hub.example"}, "https://hub.example"),
        ("s3", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "https://s3.amazonaws.com"),
        ("s3", {"accessKeyId": "a", "secretAccessKey": "b"}, "https://s3.amazonaws.com"),
        ("abfs", {"AZURE_STORAGE_ACCOUNT": "team", "AZURE_STORAGE_KEY": "a2V5"}, AZURE_TEAM),
        ("abfs", {"accountName": "team", "sasToken": "sig=a"}, AZURE_TEAM),
        (
            "abfs",
            {CONNECTION_STRING: "AccountName=team;AccountKey=a2V5;EndpointSuffix=core.windows.net"},
            AZURE_TEAM,
        ),
        (
            "abfs",
            {"AZURE_STORAGE_CONNECTION_STRING": "BlobEndpoint=https://a.example;SharedAccessSignature=sig=a"},
            "https://a.example",
        ),
        ("gs", {"GOOGLE_APPLICATION_CREDENTIALS": SERVICE_ACCOUNT}, "https://storage.googleapis.com"),
    ],
)
def test_keys_that_name_their_provider_are_for_its_own_server_unless_another_is_given(
    scheme: str, keys: dict[str, str], endpoint: str, tmp_path: Path
) -> None:
    found = load_credentials(mounted(tmp_path, keys), scheme)

    assert found is not None
    assert found.endpoint == endpoint


def test_the_keys_of_other_providers_in_the_same_secret_do_not_matter(tmp_path: Path) -> None:
    keys = {"HF_TOKEN": "hub", "AWS_ACCESS_KEY_ID": "a", "GOOGLE_APPLICATION_CREDENTIALS": "none"}

    found = load_credentials(mounted(tmp_path, keys), "hf")

    assert found is not None
    assert found.authorization == "Bearer hub"
    assert found.access_key_id is None


@pytest.mark.parametrize(
    ("key", "value", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY", "s3cret-of-amazon", "s3cret-of-amazon"),
        ("AZURE_STORAGE_SAS_TOKEN", "?sv=2030&sig=s1gnature", "s1gnature"),
        ("AZURE_STORAGE_CONNECTION_STRING", "AccountName=team;AccountKey=a2V5a2V5==", "a2V5a2V5=="),
    ],
)
def test_values_under_the_names_of_providers_are_redacted(
    key: str, value: str, secret: str, tmp_path: Path
) -> None:
    with suppress(StageFailure):
        load_credentials(mounted(tmp_path, {key: value}), "hf")

    assert secret not in SCRUBBER.scrub(f"the server repeats {secret}.")


def test_every_documented_key_is_one_of_the_credentials() -> None:
    fields = {field.alias for field in Credentials.model_fields.values()}

    assert {key for keys in KEYS.values() for key in keys} == fields - {"secret name"}
    for scheme, names in PROVIDER_KEYS.items():
        assert set(names.values()) - {CONNECTION_STRING} <= set(KEYS[scheme])


def test_without_a_secret_there_are_no_credentials() -> None:
    assert load_credentials(None) is None
