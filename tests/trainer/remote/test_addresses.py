# SPDX-License-Identifier: Apache-2.0
"""Connections to addresses of the node and of the cloud's metadata services are refused."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.remote.origins import AddressRefused, guard_connections, why_forbidden
from tests.s3server import S3Server
from tests.trainer.remote.hubserver import HubServer, Repository
from tests.trainer.remote.reading import failure, read
from tests.trainer.remote.webserver import WebServer
from tools.cluster.credentials import Authority

METADATA = "169.254.169.254"


@pytest.mark.parametrize(
    "address",
    [
        METADATA,
        "169.254.170.23",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fe80::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1:ff64:64:64c8::",
        "64:ff9b:1:10a9:fe:a9fe::",
        "64:ff9b:1:10:a9:fea9:fe00:0",
        "64:ff9b:1::a9fe:a9fe",
        "64:ff9b:1::6464:64c8",
        "2002:a9fe:a9fe::1",
        "224.0.0.1",
        "ff02::1",
        "0.0.0.0",  # noqa: S104
        "0.1.2.3",
        "::",
        "metadata.google.internal",
    ],
)
def test_an_address_of_the_platform_is_forbidden(address: str) -> None:
    assert why_forbidden(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "10.96.0.10",
        "192.168.1.2",
        "172.16.0.1",
        "fd12::1",
        "8.8.8.8",
        "2a00::1",
        "64:ff9b::808:808",
        "64:ff9b:1::808:808",
        "64:ff9b:1:808:8:800::",
    ],
)
def test_an_address_of_the_cluster_or_of_the_world_may_be_connected_to(address: str) -> None:
    assert why_forbidden(address) is None


def mounted(folder: Path, **keys: str) -> SecretMount:
    for key, value in keys.items():
        (folder / key).write_text(value)
    return SecretMount(name="rows", path=str(folder))


@pytest.fixture
def misleading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolve the name `rows.example` to the metadata service."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve(METADATA if host == "rows.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.usefixtures("misleading")
@pytest.mark.parametrize("uri", ["https://rows.example/rows.jsonl", f"https://{METADATA}/latest/meta-data"])
def test_a_source_at_such_an_address_is_refused_whatever_its_name(uri: str, tmp_path: Path) -> None:
    found = failure(tmp_path, uri)

    assert (found.reason, found.exit_code) == (FailureReason.ADDRESS_REFUSED, ExitCode.BAD_CONFIG)
    assert f"{METADATA} is link-local" in found.message


def test_a_redirect_to_such_an_address_is_refused(
    web: WebServer, tmp_path: Path, authority: Authority
) -> None:
    web.redirects["/rows.jsonl"] = f"https://{METADATA}/latest"
    secret = web.secret(tmp_path / "secret", caBundle=authority.certificate.decode())

    found = failure(tmp_path, f"https://{web.host}/rows.jsonl", secret)

    assert found.reason is FailureReason.ADDRESS_REFUSED


def test_an_endpoint_at_such_an_address_is_refused_before_anything_is_sent(
    s3: S3Server, tmp_path: Path
) -> None:
    found = failure(tmp_path, "s3://rows/a.jsonl", s3.secret(tmp_path / "s", endpoint=f"http://{METADATA}"))

    assert found.reason is FailureReason.INVALID_CREDENTIALS
    assert f"key endpoint: {METADATA} is link-local" in found.message


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses of clients that retry on their own."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))


@pytest.mark.usefixtures("misleading", "hurried")
@pytest.mark.parametrize(
    ("uri", "keys"),
    [
        ("s3://rows/a.jsonl", {}),
        ("hf://team/rows", {}),
        ("gs://rows/a.jsonl", {"token": "t0ken"}),
        ("abfs://rows/a.jsonl", {"accountName": "team", "accountKey": "a2V5"}),
    ],
)
def test_an_endpoint_whose_name_leads_there_is_refused(
    uri: str, keys: dict[str, str], tmp_path: Path
) -> None:
    found = failure(tmp_path / "here", uri, mounted(tmp_path, endpoint="http://rows.example", **keys))

    assert found.reason is FailureReason.ADDRESS_REFUSED


@pytest.mark.usefixtures("misleading")
def test_a_sign_in_that_a_service_accounts_key_sends_there_is_refused(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "client_email": "rows@team.example",
        "token_uri": "http://rows.example/token",
        "private_key": key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        ).decode(),
    }
    with WebServer() as server:
        keys = {"endpoint": server.endpoint, "serviceAccountKey": json.dumps(account)}

        found = failure(tmp_path / "here", "gs://rows/a.jsonl", mounted(tmp_path, **keys))

    assert found.reason is FailureReason.ADDRESS_REFUSED
    assert server.seen == []


def test_every_library_of_the_process_is_held_to_it() -> None:
    guard_connections()

    with pytest.raises(requests.ConnectionError, match="is link-local"):
        requests.get(f"http://{METADATA}/", timeout=1)
    with pytest.raises(AddressRefused), socket.socket() as connection:
        connection.connect((METADATA, 80))


def test_a_proxy_in_the_environment_is_not_used(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard_connections.cache_clear()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    repository = hub.repositories["datasets/team/rows"] = Repository()
    repository.commit({"rows.jsonl": b"{}"})

    found = read(tmp_path / "here", "hf://datasets/team/rows", hub.secret(tmp_path / "secret"))

    assert found == {"rows.jsonl": b"{}"}
