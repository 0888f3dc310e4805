# SPDX-License-Identifier: Apache-2.0
"""Progress reports, against a real HTTPS endpoint."""

import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from finetune_trainer.contract.environment import PROGRESS_ENV
from finetune_trainer.contract.references import Owner, ReportTarget
from finetune_trainer.contract.results import Progress, Report
from finetune_trainer.runtime.progress import Reporter
from tests.trainer.certificates import certificate

OWNER = Owner(kind="FineTuneJob", namespace="team", name="routing", uid="0f0f")
DEADLINE_SECONDS = 30


def test_outside_a_pod_the_newest_progress_is_in_the_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "progress"
    monkeypatch.setenv(PROGRESS_ENV, str(path))
    reporter = Reporter(None, OWNER, "train")

    for step in (1, 2):
        reporter.progress(Progress(step=step, total_steps=3, loss=0.5))

    assert Progress.model_validate_json(path.read_text()) == Progress(step=2, total_steps=3, loss=0.5)
    assert [each.name for each in tmp_path.iterdir()] == ["progress"]


class Endpoint:
    """Stores received reports. Responds with the given status codes, then with 200."""

    def __init__(self, folder: Path) -> None:
        self.received: list[tuple[str, str, Report]] = []
        self.answers: list[int] = []
        self.changed = threading.Condition()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with endpoint.changed:
                    report = Report.model_validate_json(body)
                    endpoint.received.append((self.path, self.headers["Authorization"], report))
                    status = endpoint.answers.pop(0) if endpoint.answers else 200
                    endpoint.changed.notify_all()
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Keep the test's output clean."""

        file, self.ca_pem = certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def target(self) -> ReportTarget:
        return ReportTarget(url=f"https://127.0.0.1:{self.server.server_port}", ca_pem=self.ca_pem)

    @property
    def steps(self) -> list[int]:
        return [report.progress.step for _, _, report in self.received]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_SECONDS), self.received


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path)
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def test_a_report_carries_owner_progress_and_the_token_of_the_moment(endpoint: Endpoint, token: Path) -> None:
    reporter = Reporter(endpoint.target, OWNER, "train", token)
    reporter.progress(Progress(step=1, total_steps=9, loss=0.5))
    endpoint.wait(lambda: endpoint.steps == [1])
    token.write_text("second\n")
    reporter.progress(Progress(step=2, total_steps=9))
    reporter.close(DEADLINE_SECONDS)

    (path, first_token, first), (_, second_token, second) = endpoint.received
    assert path == "/v1/reports"
    assert (first_token, second_token) == ("Bearer first", "Bearer second")
    assert (first.owner, first.stage) == (OWNER, "train")
    assert first.progress == Progress(step=1, total_steps=9, loss=0.5)
    assert first.sequence < second.sequence


def test_only_the_newest_progress_is_sent(endpoint: Endpoint, token: Path) -> None:
    reporter = Reporter(endpoint.target, OWNER, "train", token)
    reporter.progress(Progress(step=1))
    endpoint.wait(lambda: endpoint.steps == [1])
    for step in range(2, 1000):
        reporter.progress(Progress(step=step))
    reporter.close(DEADLINE_SECONDS)

    assert endpoint.steps == [1, 999]


def test_a_new_pod_of_the_run_sends_larger_sequence_numbers(endpoint: Endpoint, token: Path) -> None:
    for step in (1, 2):
        reporter = Reporter(endpoint.target, OWNER, "train", token)
        reporter.progress(Progress(step=step))
        reporter.close(DEADLINE_SECONDS)

    first, second = (report.sequence for _, _, report in endpoint.received)
    assert first < second


@pytest.mark.parametrize("status", [503, 403])
def test_a_report_that_was_not_taken_is_sent_again(endpoint: Endpoint, token: Path, status: int) -> None:
    endpoint.answers = [status]
    reporter = Reporter(endpoint.target, OWNER, "train", token)
    reporter.progress(Progress(step=1))
    reporter.close(DEADLINE_SECONDS)

    assert endpoint.steps == [1, 1]


def test_a_report_that_is_refused_is_not_sent_again(
    endpoint: Endpoint, token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answers = [422]
    reporter = Reporter(endpoint.target, OWNER, "train", token)
    reporter.progress(Progress(step=1))
    reporter.close(DEADLINE_SECONDS)

    assert endpoint.steps == [1]
    assert "rejected a progress report: status 422" in caplog.text


def test_a_token_that_is_there_later_is_used_then(endpoint: Endpoint, token: Path) -> None:
    token.unlink()
    reporter = Reporter(endpoint.target, OWNER, "train", token)
    reporter.progress(Progress(step=1))
    token.write_text("late")
    reporter.close(DEADLINE_SECONDS)

    assert [token for _, token, _ in endpoint.received] == ["Bearer late"]


def test_an_endpoint_that_cannot_be_reached_stops_nobody(
    endpoint: Endpoint, token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = endpoint.target
    endpoint.server.shutdown()
    endpoint.server.server_close()
    reporter = Reporter(target, OWNER, "train", token)
    with caplog.at_level(logging.WARNING):
        for step in range(100):
            reporter.progress(Progress(step=step))
        reporter.close(timeout_seconds=1.5)

    complaints = [record for record in caplog.records if "does not reach the operator" in record.getMessage()]
    assert len(complaints) == 1


def test_an_endpoint_with_another_certificate_gets_nothing(
    endpoint: Endpoint, token: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    _, other = certificate(tmp_path / "other")
    reporter = Reporter(ReportTarget(url=endpoint.target.url, ca_pem=other), OWNER, "train", token)
    reporter.progress(Progress(step=1))
    reporter.close(timeout_seconds=1)

    assert endpoint.received == []


def test_a_broken_certificate_is_logged_and_stops_nobody(
    token: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = Reporter(ReportTarget(url="https://127.0.0.1:1", ca_pem="none"), OWNER, "train", token)
    reporter.progress(Progress(step=1))
    reporter.close(DEADLINE_SECONDS)

    assert "report.caPem is not a certificate" in caplog.text


def test_without_a_target_nothing_happens() -> None:
    before = threading.active_count()
    reporter = Reporter(None, OWNER, "train")
    reporter.progress(Progress(step=1))
    reporter.close(DEADLINE_SECONDS)

    assert threading.active_count() == before
