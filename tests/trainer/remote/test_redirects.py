# SPDX-License-Identifier: Apache-2.0
"""Redirects that clients follow, and the credentials that they send to the target."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from typing_extensions import override

from finetune_trainer.contract.vocabulary import FailureReason
from tests.trainer.remote.reading import failure
from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tools.cluster.credentials import Authority

SECRETS = ("K3Y", "S3SSION", "t0ken", "s1gnature")


class Elsewhere(WebServer):
    """Redirects all requests to another server, under another name."""

    place = ""
    status: int = HTTPStatus.FOUND

    @override
    def answer(self, asked: Seen) -> Answer:
        return Answer(status=self.status, headers=(("Location", self.place + asked.path.partition("?")[0]),))


@pytest.fixture
def target() -> Iterator[WebServer]:
    with WebServer() as server:
        yield server


def place_of(server: WebServer) -> str:
    return server.endpoint.replace("127.0.0.1", "localhost")


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("scheme", "keys"),
    [
        pytest.param("abfs", {"accountName": "team", "accountKey": "SzNZ"}, id="abfs key"),
        pytest.param("abfs", {"accountName": "team", "sasToken": "sv=2030&sig=s1gnature"}, id="abfs sas"),
        pytest.param("gs", {"token": "t0ken"}, id="gs"),
        pytest.param("hf", {"token": "t0ken"}, id="hf"),
        pytest.param(
            "s3", {"accessKeyId": "K3Y", "secretAccessKey": "K3Y", "sessionToken": "S3SSION"}, id="s3"
        ),
        pytest.param("hf", {"HF_TOKEN": "t0ken", "HF_ENDPOINT": ""}, id="hf by its own names"),
        pytest.param(
            "s3",
            {
                "AWS_ACCESS_KEY_ID": "K3Y",
                "AWS_SECRET_ACCESS_KEY": "K3Y",
                "AWS_SESSION_TOKEN": "S3SSION",
                "AWS_ENDPOINT_URL": "",
            },
            id="s3 by the names of AWS",
        ),
        pytest.param(
            "abfs",
            {"AZURE_STORAGE_ACCOUNT": "team", "AZURE_STORAGE_SAS_TOKEN": "sv=2030&sig=s1gnature"},
            id="abfs by the names of Azure",
        ),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_no_proof_of_who_asks_goes_to_another_server(
    scheme: str, keys: dict[str, str], status: int, target: WebServer, tmp_path: Path
) -> None:
    with Elsewhere() as server:
        server.place, server.status = place_of(target), status
        keys = {key: value or server.endpoint for key, value in keys.items()}

        failure(tmp_path / "here", f"{scheme}://rows/a.jsonl", server.secret(tmp_path / "secret", **keys))

    assert server.seen
    assert all(seen.authorization is None for seen in target.seen)
    shown = " ".join(f"{seen.path} {seen.headers}" for seen in target.seen)
    assert not [secret for secret in SECRETS if secret in shown]


def test_a_redirect_of_a_bucket_is_refused_and_says_which_server_to_name(
    target: WebServer, tmp_path: Path
) -> None:
    with Elsewhere() as server:
        server.place = place_of(target).replace("://", "://me:s1gnature@")
        secret = server.secret(tmp_path / "secret", accessKeyId="K3Y", secretAccessKey="K3Y")

        found = failure(tmp_path / "here", "s3://rows/a.jsonl", secret)

    assert found.reason is FailureReason.SOURCE_UNAVAILABLE
    assert f"{server.endpoint} redirects to {place_of(target)}, which is not followed" in found.message
    assert target.seen == []


@pytest.mark.parametrize("scheme", ["https", "hf", "gs", "s3"])
def test_nobody_is_led_from_https_to_http(
    scheme: str, target: WebServer, authority: Authority, tmp_path: Path
) -> None:
    with Elsewhere(authority) as server:
        server.place = place_of(target)
        secret = server.secret(tmp_path / "secret", caBundle=authority.certificate.decode())
        place = f"{server.host}/a.jsonl?signature=s1gnature" if scheme == "https" else "rows/a.jsonl"

        found = failure(tmp_path / "here", f"{scheme}://{place}", secret)

    assert found.reason is FailureReason.SOURCE_UNAVAILABLE
    assert f"{server.endpoint} redirects to {place_of(target)}, which is not followed" in found.message
    assert target.seen == []
