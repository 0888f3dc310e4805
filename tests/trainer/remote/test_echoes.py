# SPDX-License-Identifier: Apache-2.0
"""Servers that echo credentials: the pod writes none of them anywhere."""

import base64
import json
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import pytest
from typing_extensions import override

from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.contract.vocabulary import FailureReason
from tests.trainer import processes
from tests.trainer.preparing import OWNER, RUN
from tests.trainer.remote.reading import failure
from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tools.cluster.credentials import Authority

TOKEN = "hf_Kq93fjWms7Lx2RvZpQ81"
KEY = base64.b64encode(b"a key of an account that is long").decode()
KEYS = {
    "https": {"token": TOKEN},
    "hf": {"token": TOKEN},
    "gs": {"token": TOKEN},
    "s3": {"accessKeyId": "AKIAIOSFODNN7EXAMPLE", "secretAccessKey": TOKEN, "sessionToken": TOKEN[::-1]},
    "abfs": {"accountName": "team", "sasToken": f"sv=2030&sig={TOKEN}"},
}


def forms() -> set[str]:
    """Return the forms in which a server may echo the values of a Secret."""
    values = {value for keys in KEYS.values() for name, value in keys.items() if name != "accountName"}
    values |= {TOKEN, base64.b64encode(f"me:{TOKEN}".encode()).decode()}
    return values | {quote(value, safe="") for value in values}


class Echo(WebServer):
    """Refuses all requests, and echoes their credentials in its reason, headers and body."""

    status = HTTPStatus.FORBIDDEN

    @override
    def answer(self, asked: Seen) -> Answer:
        sent = " ".join([asked.path, *(value for _, value in sorted(asked.headers.items()))])
        said = f"no {sent} {base64.b64encode(sent.encode()).decode()} {quote(sent)}"
        error = {"error": said, "message": said, "code": self.status}
        return Answer(
            json.dumps({"error": error}).encode(),
            self.status,
            (("X-Error-Message", said), ("x-ms-error-code", said), ("Content-Type", "application/json")),
            said,
        )


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("scheme", list(KEYS))
@pytest.mark.usefixtures("impatient")
def test_a_credential_that_a_server_echoes_is_in_no_message(
    scheme: str, status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Echo() as server:
        server.status = HTTPStatus(status)
        secret = server.secret(tmp_path / "secret", **KEYS[scheme])
        uri = f"{scheme}://rows/team/a.jsonl"

        message = failure(tmp_path / "here", uri, secret).message

    assert not [form for form in forms() if form in message]
    assert len(message) < 800


@pytest.mark.parametrize("keys", [{"token": TOKEN}, {"username": "me", "password": TOKEN}])
def test_a_pod_leaves_nothing_of_a_credential_in_its_result_log_and_store(
    keys: dict[str, str], authority: Authority, tmp_path: Path
) -> None:
    with Echo(authority) as server:
        secret = server.secret(tmp_path / "secret", caBundle=authority.certificate.decode(), **keys)
        config = PrepareConfig(
            owner=OWNER,
            run=RUN,
            store=StoreConfig(uri="pvc://artifacts", path=str(tmp_path / "store")),
            sources=(
                SourceConfig(uri=f"https://{server.host}/rows.jsonl?sig={TOKEN[::-1]}", credentials=secret),
            ),
        )

        ended = processes.run(config)

    left = ended.termination_message + json.dumps(ended.logs)
    left += "".join(path.read_text() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert ended.result.reason == FailureReason.ACCESS_DENIED
    assert "403" in ended.result.message
    assert not [form for form in {*forms(), TOKEN[::-1]} if form in left]
