# SPDX-License-Identifier: Apache-2.0
"""`https://` sources, from a server with its own certificate authority."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typing_extensions import override

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.remote import retries
from finetune_trainer.remote import source as remote_source
from finetune_trainer.remote import web as web_client
from finetune_trainer.remote.remote_folder import CHUNK_BYTES
from finetune_trainer.runtime.termination import Preempted, StageFailure
from tests.trainer.preparing import json_lines, pairs
from tests.trainer.remote.reading import failure, prepare, read, source
from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tools.cluster.credentials import Authority

ROWS = json_lines(pairs(40)).encode()
MANY_ROWS = ROWS * 1000
"""More than a client reads before it detects a broken connection."""


@pytest.fixture
def secret(web: WebServer, authority: Authority, tmp_path: Path) -> SecretMount:
    return web.secret(tmp_path / "secret", token="t0ken", caBundle=authority.certificate.decode())


def uri(web: WebServer, path: str = "/rows.jsonl") -> str:
    return f"https://{web.host}{path}"


def test_rows_on_a_web_server_become_a_dataset(web: WebServer, secret: SecretMount, tmp_path: Path) -> None:
    web.files["/rows.jsonl"] = ROWS
    web.authorization = "Bearer t0ken"

    result = prepare(tmp_path, uri(web), secret)

    assert sum(split.rows for split in result.splits) == 40
    listed = [["rows.jsonl", hashlib.sha256(ROWS).hexdigest()]]
    content = json.dumps(listed, separators=(",", ":")).encode()
    assert result.source == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert not list((tmp_path / "store" / "runs").rglob("rows.jsonl"))


def test_a_name_with_a_password_is_shown_to_the_endpoint(
    web: WebServer, authority: Authority, tmp_path: Path
) -> None:
    web.files["/rows.jsonl"] = ROWS
    web.authorization = "Basic bWU6c2VjcmV0"
    keys = {"username": "me", "password": "secret", "caBundle": authority.certificate.decode()}

    assert read(tmp_path, uri(web), web.secret(tmp_path / "secret", **keys)) == {"rows.jsonl": ROWS}


def test_a_redirect_to_another_host_arrives_without_credentials(
    web: WebServer, elsewhere: WebServer, secret: SecretMount, tmp_path: Path
) -> None:
    web.redirects["/rows.jsonl"] = f"{elsewhere.endpoint}/far.jsonl"
    elsewhere.files["/far.jsonl"] = ROWS

    assert read(tmp_path, uri(web), secret)["rows.jsonl"] == ROWS

    assert {seen.authorization for seen in web.seen} == {"Bearer t0ken"}
    assert {seen.authorization for seen in elsewhere.seen} == {None}


def test_credentials_for_one_server_are_not_shown_to_the_one_that_the_uri_names(
    web: WebServer, elsewhere: WebServer, secret: SecretMount, tmp_path: Path
) -> None:
    elsewhere.files["/rows.jsonl"] = ROWS

    assert read(tmp_path, uri(elsewhere), secret)["rows.jsonl"] == ROWS

    assert web.seen == []
    assert {seen.authorization for seen in elsewhere.seen} == {None}


def test_a_download_that_breaks_off_goes_on_where_it_was(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    content = web.files["/rows.jsonl"] = ROWS * 1000
    opened = source(uri(web), secret)
    web.faults.extend(["cut", 503])

    opened.download(opened.files, tmp_path)

    assert (tmp_path / "rows.jsonl").read_bytes() == content
    first, refused, second = web.downloads("/rows.jsonl")
    assert first is None
    assert refused == second
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


def test_a_file_that_changes_while_it_is_read_is_read_anew(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    web.files["/rows.jsonl"] = b"old" * 1000
    opened = source(uri(web), secret)
    web.faults.append("cut")

    def change(_: int) -> None:
        web.files["/rows.jsonl"] = b"new" * 1000

    with pytest.raises(StageFailure, match=r"rows\.jsonl was changed while it was read") as caught:
        opened.download(opened.files, tmp_path, change)

    assert caught.value.exit_code is ExitCode.INTERNAL
    assert list(tmp_path.glob("*.jsonl")) == []
    assert read(tmp_path, uri(web), secret) == {"rows.jsonl": b"new" * 1000}


def test_the_next_pod_goes_on_with_what_one_that_was_stopped_has_left(
    web: WebServer, secret: SecretMount, tmp_path: Path
) -> None:
    web.files["/rows.jsonl"] = content = bytes(range(256)) * (3 * CHUNK_BYTES // 256)
    stop = threading.Event()
    opened = source(uri(web), secret, stop=stop)
    with pytest.raises(Preempted):
        opened.download(opened.files, tmp_path, lambda count: stop.set() if count else None)
    assert not (tmp_path / "rows.jsonl").exists()

    assert read(tmp_path, uri(web), secret) == {"rows.jsonl": content}

    begun, resumed = web.downloads("/rows.jsonl")
    assert begun is None
    assert resumed is not None


def test_a_server_without_ranges_is_read_from_the_beginning(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    web.files["/rows.jsonl"] = ROWS
    web.knows_ranges = False
    opened = source(uri(web), secret)
    web.faults.append("cut")

    opened.download(opened.files, tmp_path)

    assert (tmp_path / "rows.jsonl").read_bytes() == ROWS


def test_a_server_that_keeps_failing_is_named(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    web.faults.extend([503] * 20)

    found = failure(tmp_path, uri(web), secret)

    assert (found.reason, found.exit_code) == (FailureReason.SOURCE_UNAVAILABLE, ExitCode.INTERNAL)
    assert found.message.startswith(f"source {uri(web)}: ")
    assert "503" in found.message


def test_a_refusal_names_the_secret_and_its_keys(web: WebServer, secret: SecretMount, tmp_path: Path) -> None:
    web.authorization = "Bearer another"

    found = failure(tmp_path, uri(web), secret)

    assert (found.reason, found.exit_code) == (FailureReason.ACCESS_DENIED, ExitCode.BAD_CONFIG)
    assert "correct Secret credentials; its keys are endpoint, token, username, password" in found.message


@pytest.mark.parametrize(
    ("path", "name"), [("/?export=rows", "rows"), ("/my%20rows%2Fall.csv?v=2", "my%20rows%2Fall.csv")]
)
def test_whatever_the_path_the_file_has_a_plain_name(
    web: WebServer, secret: SecretMount, tmp_path: Path, path: str, name: str
) -> None:
    web.files[path.partition("?")[0]] = ROWS

    assert read(tmp_path / "here", uri(web, path), secret) == {name: ROWS}


def test_a_file_that_is_not_there_is_not_found(web: WebServer, secret: SecretMount, tmp_path: Path) -> None:
    assert failure(tmp_path, uri(web), secret).reason is FailureReason.SOURCE_NOT_FOUND


def test_an_unknown_authority_is_refused_and_says_where_its_certificate_goes(
    web: WebServer, tmp_path: Path
) -> None:
    found = failure(tmp_path, uri(web), web.secret(tmp_path / "secret"))

    assert "add the certificate of its authority as key caBundle to the Secret" in found.message
    assert web.seen == []


def test_a_source_beyond_the_limit_is_refused_before_it_is_read(
    web: WebServer, secret: SecretMount, tmp_path: Path
) -> None:
    web.files["/rows.jsonl"] = ROWS

    found = failure(tmp_path, uri(web), secret, limit_bytes=100)

    assert found.reason is FailureReason.SOURCE_TOO_LARGE
    assert f"it has {len(ROWS)} bytes" in found.message
    assert web.downloads("/rows.jsonl") == []


def test_a_signature_in_a_url_does_not_appear_in_a_message(
    web: WebServer, secret: SecretMount, tmp_path: Path
) -> None:
    found = failure(tmp_path, uri(web, "/rows.jsonl?signature=s3cret"), secret)

    assert "s3cret" not in found.message


class Vague(WebServer):
    """Supports ranges, and reports no file sizes, or `total`."""

    total = "*"
    first_byte = 0
    """Start of every range that it sends, whatever the request; 0: it refuses ranges."""
    refuses_all = False

    @override
    def answer(self, asked: Seen) -> Answer:
        etag = ("ETag", '"1"')
        if asked.range == "bytes=0-0":
            return Answer(ROWS[:1], 206, (etag, ("Content-Range", f"bytes 0-0/{self.total}")))
        if asked.range is not None and self.first_byte:
            place = ("Content-Range", f"bytes {self.first_byte}-{len(MANY_ROWS) - 1}/{len(MANY_ROWS)}")
            return Answer(MANY_ROWS[self.first_byte :], 206, (etag, place))
        if asked.range is not None or self.refuses_all:
            return Answer(b"error page!", 416, (etag,))
        return Answer(MANY_ROWS, headers=(etag,))


@pytest.fixture
def vague(authority: Authority) -> Iterator[Vague]:
    with Vague(authority) as server:
        server.knows_ranges = False  # `answer` does all of it
        yield server


@pytest.fixture
def trust(vague: Vague, authority: Authority, tmp_path: Path) -> SecretMount:
    return vague.secret(tmp_path / "trust", caBundle=authority.certificate.decode())


def test_an_answer_whose_end_a_broken_connection_could_be_is_not_taken(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    web.files["/rows.jsonl"] = ROWS
    web.knows_ranges = web.tells_length = False

    found = failure(tmp_path / "here", uri(web), secret)

    assert found.reason is FailureReason.SOURCE_UNAVAILABLE
    assert "it must send Content-Length or Transfer-Encoding: chunked" in found.message
    assert list((tmp_path / "here").glob("*.jsonl")) == []


def test_a_file_of_unknown_length_is_read_from_the_beginning(
    vague: Vague, trust: SecretMount, tmp_path: Path, impatient: None
) -> None:
    opened = source(uri(vague), trust)
    vague.faults.append("cut")

    opened.download(opened.files, tmp_path / "here")

    assert (tmp_path / "here" / "rows.jsonl").read_bytes() == MANY_ROWS
    assert vague.downloads("/rows.jsonl") == [None, None]


def test_the_page_that_says_there_is_no_such_range_is_no_content(
    vague: Vague, trust: SecretMount, tmp_path: Path, impatient: None
) -> None:
    vague.refuses_all = True

    assert "416" in failure(tmp_path / "here", uri(vague), trust).message


def test_an_empty_file_is_read(web: WebServer, secret: SecretMount, tmp_path: Path) -> None:
    web.files["/rows.jsonl"] = b""

    assert read(tmp_path / "here", uri(web), secret) == {"rows.jsonl": b""}


def test_another_range_than_was_asked_for_is_not_taken(
    vague: Vague, trust: SecretMount, tmp_path: Path, impatient: None
) -> None:
    vague.total, vague.first_byte = str(len(MANY_ROWS)), 10
    opened = source(uri(vague), trust)
    vague.faults.append("cut")

    with pytest.raises(StageFailure, match="the server sent bytes from 10, not from"):
        opened.download(opened.files, tmp_path / "here")


@pytest.mark.parametrize("total", ["*", "10"])
def test_more_than_is_allowed_is_refused_while_it_is_read(
    vague: Vague, trust: SecretMount, tmp_path: Path, total: str
) -> None:
    vague.total = total

    found = failure(tmp_path / "here", uri(vague), trust, limit_bytes=100)

    assert (found.reason, found.exit_code) == (FailureReason.SOURCE_TOO_LARGE, ExitCode.BAD_CONFIG)
    assert "it is larger than the limit" in found.message
    assert vague.downloads("/rows.jsonl") == [None]


def test_what_is_fetched_again_does_not_count_twice(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None
) -> None:
    web.files["/rows.jsonl"] = MANY_ROWS
    web.knows_ranges = False
    opened = source(uri(web), secret, limit_bytes=len(MANY_ROWS))
    web.faults.extend(["cut", "cut"])

    opened.download(opened.files, tmp_path / "here")

    assert (tmp_path / "here" / "rows.jsonl").read_bytes() == MANY_ROWS


def test_a_download_ends_when_its_time_is_over(
    web: WebServer, secret: SecretMount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/rows.jsonl"] = ROWS
    monkeypatch.setattr(remote_source, "MAX_DOWNLOAD_SECONDS", 0.0)

    found = failure(tmp_path / "here", uri(web), secret)

    assert found.reason is FailureReason.SOURCE_TOO_LARGE
    assert "the download takes too long" in found.message


def test_a_server_that_falls_silent_is_asked_again(
    web: WebServer, secret: SecretMount, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["/rows.jsonl"] = ROWS
    monkeypatch.setattr(web_client, "STALL_SECONDS", 1.0)
    opened = source(uri(web), secret)
    web.faults.append("stall")

    opened.download(opened.files, tmp_path / "here")

    assert (tmp_path / "here" / "rows.jsonl").read_bytes() == ROWS


def test_a_server_that_takes_no_connection_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_client, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(retries, "MAX_ATTEMPTS", 1)
    with closing(socket.socket()) as deaf, closing(socket.socket()) as waiting:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        waiting.connect(deaf.getsockname())  # one may wait; the next one's packets are dropped

        found = failure(tmp_path, f"https://127.0.0.1:{deaf.getsockname()[1]}/rows.jsonl")

    assert (found.reason, found.exit_code) == (FailureReason.SOURCE_UNAVAILABLE, ExitCode.INTERNAL)
    assert "Connection timeout" in found.message
