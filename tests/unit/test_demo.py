# SPDX-License-Identifier: Apache-2.0
"""The demo's view of objects, and its counts of requests."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from finetune_client.access import DemoError
from finetune_client.endpoint import Endpoint, ask, ask_streamed
from finetune_client.follow import DemoStatus, LineView, render
from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import split_of
from tests.waiting import eventually
from tools.demo.questions import SteadyLoad, calibrated_rate, compare, held_out
from tools.demo.story import MAX_IN_FLIGHT, RolloutLoad

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROWS = Path(__file__).parents[2] / "examples" / "ticket-routing" / "data" / "tickets.jsonl"


def condition(type_: str, reason: str = "Succeeded", message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": NOW.isoformat(),
    }


def job(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "routing", "uid": "u", "creationTimestamp": NOW.isoformat()},
        "spec": {
            "modelLine": "routing",
            "baseModel": {"uri": "pvc://models/m"},
            "dataset": {"ref": {"name": "tickets"}},
        },
        "status": {"conditions": list(conditions), **status},
    }


def endpoint(checkpoint: str, *conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    served = [{"name": "routing", "checkpoint": checkpoint}] if checkpoint else []
    return {
        "metadata": {"name": "routing", "uid": "e"},
        "spec": {
            "baseModel": {"uri": "pvc://models/m"},
            "models": [{"name": "routing", "follow": {"modelLine": "routing"}}],
        },
        "status": {"conditions": list(conditions), "models": served, **status},
    }


def event(
    reason: str, message: str, at: datetime = NOW, api: str = "finetune.dev/v1alpha1"
) -> dict[str, Any]:
    return {
        "metadata": {"uid": f"{reason}{at}", "resourceVersion": "7"},
        "involvedObject": {"apiVersion": api, "kind": "FineTuneJob", "name": "routing"},
        "reason": reason,
        "message": message,
        "lastTimestamp": at.isoformat(),
    }


def snapshot(
    job: dict[str, Any], endpoint: dict[str, Any] | None = None, *events: dict[str, Any]
) -> DemoStatus:
    return DemoStatus.of(job, endpoint, events, NOW + timedelta(seconds=90))


def states(shown: DemoStatus) -> list[str]:
    return [f"{stage.name} {stage.state}" for stage in shown.stages]


def test_a_new_run_is_preparing_and_waits_with_all_else() -> None:
    assert states(snapshot(job())) == [
        "prepare running",
        "preflight waiting",
        "train waiting",
        "evaluate waiting",
        "promote waiting",
        "serve waiting",
    ]


def test_the_running_stage_shows_step_loss_and_time_left() -> None:
    progress = {"stage": "train", "step": 30, "totalSteps": 96, "loss": 0.4123, "etaSeconds": 75}
    done = (condition("DatasetReady"), condition("Preflighted"))
    shown = snapshot(job(*done, progress=progress, stages=[{"name": "preflight", "seconds": 12.0}]))
    train = next(stage for stage in shown.stages if stage.state == "running")
    assert (train.name, train.detail) == ("train", "step 30/96  loss 0.412  ETA 1:15")
    assert [stage.seconds for stage in shown.stages][:2] == [None, 12.0]


EVALUATED = {"checkpoint": "routing-abc", "verdict": "Passed", "scores": [], "gates": []}
ENDED = tuple(condition(type_) for type_ in ("DatasetReady", "Preflighted", "Trained", "Evaluated", "Ready"))


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (endpoint("", condition("Reconciling", "WaitingForCheckpoint")), False),
        (endpoint("routing-of-before", condition("Ready", "Serving")), False),
        (endpoint("routing-abc", condition("Reconciling", "RollingOut")), False),
        (endpoint("routing-abc", condition("Ready", "Serving")), True),
    ],
    ids=["nothing", "the one before", "not ready", "its own"],
)
def test_a_run_is_served_when_the_endpoint_is_ready_with_its_own_checkpoint(
    served: dict[str, Any], expected: bool
) -> None:
    shown = snapshot(job(*ENDED, evaluation=EVALUATED), served)
    assert shown.serves_own is expected
    assert states(shown)[-2:] == ["promote done", "serve done" if expected else "serve running"]


def test_events_of_other_objects_and_of_an_earlier_demo_are_left_out() -> None:
    shown = snapshot(
        job(),
        None,
        event("StageStarted", "mine"),
        event("StageStarted", "of before", NOW - timedelta(minutes=5)),
        event("Scheduled", "of a pod", api="v1"),
    )
    assert [event.message for event in shown.events] == ["mine"]


def test_the_picture_names_the_run_what_it_does_and_the_newest_event() -> None:
    working = condition("Reconciling", "Training", "step 3 of [96]")
    out = io.StringIO()
    shown = snapshot(job(working), None, event("StageStarted", "train started"))
    Console(file=out, width=100).print(render(shown, "load: 3 requests sent"))
    for text in (
        "FineTuneJob routing",
        "1:30",
        "Training: step 3 of [96]",
        "train started",
        "load: 3 requests",
    ):
        assert text in out.getvalue()


def test_without_a_terminal_each_change_is_one_line_said_once() -> None:
    out = io.StringIO()
    view = LineView(Console(file=out, width=100), lambda: "")
    started = event("StageStarted", "train started")
    for _ in range(3):
        view.show(snapshot(job(condition("DatasetReady")), None, started))
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "FineTuneJob routing · StageStarted · train started",
        "✔ prepare",
        "▶ preflight",
    ]


def test_the_questions_are_held_out_rows_with_three_different_answers() -> None:
    split = Split(validation=0.1, test=0.15)
    questions = held_out(ROWS, split)
    assert len({question.output for question in questions}) == 3
    assert {split_of(RawRow(question), split) for question in questions} == {"test"}


class OpenAIServer(BaseHTTPRequestHandler):
    """Answers with the model's name.

    Every second request to the model `flaky` gets an error, each first attempt at `busy` and each one at
    `overloaded` is refused, and `slow` answers when a test permits it.
    """

    asked = open = most_open = 0
    lock = threading.Lock()
    answers = threading.Semaphore(0)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model, attempt = body["model"], int(self.headers["x-stainless-retry-count"])
        with self.lock:
            type(self).asked += 1
            type(self).open += 1
            type(self).most_open = max(self.open, self.most_open)
            broken = model == "flaky" and self.asked % 2 == 0
        if model == "slow":
            self.answers.acquire(timeout=60)
        with self.lock:
            type(self).open -= 1
        if model == "overloaded" or (model == "busy" and attempt == 0):
            self.send_response(429)
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if model == "missing":
            self.send_error(404)
            return
        message = {"role": "assistant", "content": f"{body['model']}\n answers"}
        answer = {
            "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }  # fmt: skip
        content = json.dumps({"error": {"message": "no"}} if broken else answer).encode()
        if body.get("stream"):
            answer["object"] = "chat.completion.chunk"
            reason = None if body["model"] == "cut" else "stop"
            answer["choices"] = [{"index": 0, "finish_reason": reason, "delta": message}]
            content = f"data: {json.dumps(answer)}\n\n".encode()
        self.send_response(500 if broken else 200)
        self.send_header("Content-Type", "text/event-stream" if body.get("stream") else "application/json")
        self.send_header("Content-Length", str(len(content)))
        # The client of a slow answer has timed out.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing, to keep pytest's output clean."""


@pytest.fixture
def served() -> Iterator[Endpoint]:
    OpenAIServer.open = OpenAIServer.most_open = 0
    OpenAIServer.answers = threading.Semaphore(0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAIServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "the loopback")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_base_and_tuned_model_are_asked_the_same_and_answer_on_one_line(served: Endpoint) -> None:
    questions = held_out(ROWS, Split(validation=0.1, test=0.15))
    with served.client() as client:
        answered = compare(client, "routing", questions)
    assert [each.prompt for each in answered] == [question.input[0].content for question in questions]
    assert {(each.base, each.tuned) for each in answered} == {("base answers", "routing answers")}


def test_a_stream_that_ends_before_its_answer_counts_as_failed(served: Endpoint) -> None:
    with served.client() as client:
        assert ask_streamed(client, "routing", "a") == "routing answers"
        with SteadyLoad(client, "cut", ["a"], asks=(ask, ask_streamed)) as load:
            eventually("four requests sent", lambda: load.sent >= 4)
    assert [not each.failure for each in sorted(load.ended, key=lambda each: each.at)] == [
        number % 2 == 0 for number in range(load.sent)
    ]


def loaded(served: Endpoint, model: str, requests: int = 4) -> RolloutLoad:
    """The requests of the demo to this model, after at least this many have ended."""
    with RolloutLoad(served, model, ["a", "b"], 1000) as load:
        eventually("requests have ended", lambda: len(load.ended) >= requests)
    return load


def test_a_refused_attempt_is_no_failed_request_but_is_counted(served: Endpoint) -> None:
    load = loaded(served, "busy")
    load.raise_failures()
    assert (load.failed, load.shed) == (0, load.sent)
    assert f"{load.sent} answered, 0 failed, {load.shed} refused and sent again" in load.line()


def test_overload_is_not_reported_as_a_failed_rollout(served: Endpoint) -> None:
    load = loaded(served, "overloaded")
    assert load.shed == 3 * load.sent
    with pytest.raises(DemoError) as error:
        load.raise_failures()
    assert (
        f"{load.sent} of {load.sent} requests failed: {load.sent} were refused because of load before the"
        " rollout. The endpoint was too slow for them, which is not a failure of the rollout"
    ) in str(error.value)


def test_failures_are_reported_by_their_phase_and_reason(served: Endpoint) -> None:
    with RolloutLoad(served, "routing", ["a"], 1000) as load:
        eventually("four requests have ended", lambda: len(load.ended) >= 4)
        load.sees_served(snapshot(job(), endpoint("", revisions=[{"name": "new", "state": "RollingOut"}])))
        load._model = "missing"
        eventually("a request failed in the rollout", lambda: load.failed > 0)
    with pytest.raises(DemoError, match=r"got status 404 during the rollout.*None is expected to fail"):
        load.raise_failures()
    before, during = load.phases()
    assert before.startswith("before the rollout: ")
    assert "none failed" in before
    assert during.startswith("during the rollout: ")
    assert "got status 404; the slowest took" in during


def test_requests_that_time_out_are_counted_as_such(served: Endpoint) -> None:
    with served.client() as client, client.with_options(timeout=0.05) as impatient:
        with SteadyLoad(impatient, "slow", ["a"]) as load:
            eventually("two requests have ended", lambda: len(load.ended) >= 2)
        for _ in range(load.sent):
            OpenAIServer.answers.release()
    assert {each.kind for each in load.ended} == {"timed out"}


def test_the_demo_waits_for_answers_instead_of_sending_more(served: Endpoint) -> None:
    with RolloutLoad(served, "slow", ["a"], 1000) as load:
        eventually("requests were sent", lambda: load.sent == MAX_IN_FLIGHT)
        OpenAIServer.answers.release()
        eventually("the next request was sent", lambda: load.sent == MAX_IN_FLIGHT + 1)
        load._stop.set()
        for _ in range(load.sent):
            OpenAIServer.answers.release()
    assert OpenAIServer.most_open == MAX_IN_FLIGHT
    assert load.answered == load.sent


def test_the_rate_of_the_demo_is_at_most_half_of_what_the_endpoint_answered(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that shows one second more at each look."""
    monkeypatch.setattr("tools.demo.questions.time", SimpleNamespace(monotonic=count().__next__))
    with served.client() as client:
        assert calibrated_rate(client, "routing", ["a", "b"]) == 0.5


def test_every_request_of_the_load_is_counted_once_as_answered_or_failed(served: Endpoint) -> None:
    with served.client() as client, SteadyLoad(client, "flaky", ["a", "b"]) as load:
        eventually("four requests sent", lambda: load.sent >= 4)
    assert load.answered + load.failed == load.sent
    assert load.failed == load.sent // 2
    assert sum(load.failures.values()) == load.failed
    assert [sum(each.failure == "" for each in load.ended), len(load.ended)] == [load.answered, load.sent]
