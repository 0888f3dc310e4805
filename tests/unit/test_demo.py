# SPDX-License-Identifier: Apache-2.0
"""The demo's questions, and its counts of requests."""

import io
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from typing_extensions import override

from finetune_client.backend import Object
from finetune_client.endpoint import Endpoint, ask, ask_streamed
from finetune_client.errors import OperationError
from finetune_trainer.contract.dataset import Split
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import split_of
from tests.unit.client.followedruns import condition, endpoint, job, snapshot
from tests.unit.client.openaiserver import OpenAIServer, serving
from tests.waiting import eventually
from tools.demo.admin_access import AdminAccess
from tools.demo.questions import SteadyLoad, calibrated_rate, compare, held_out
from tools.demo.story import MAX_IN_FLIGHT, RolloutLoad, Story

ROWS = Path(__file__).parents[2] / "examples" / "ticket-routing" / "data" / "tickets.jsonl"


def test_the_questions_are_held_out_rows_with_three_different_answers() -> None:
    split = Split(validation=0.1, test=0.15)
    questions = held_out(ROWS, split)
    assert len({question.output for question in questions}) == 3
    assert {split_of(RawRow(question), split) for question in questions} == {"test"}


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with serving() as served:
        yield served


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
    with pytest.raises(OperationError) as error:
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
    with pytest.raises(OperationError, match=r"got status 404 during the rollout.*None is expected to fail"):
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
        eventually("the requests arrived", lambda: OpenAIServer.open == MAX_IN_FLIGHT)
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


class Cluster(AdminAccess):
    """Has a stalled run and an endpoint, and pods with one line of logs."""

    def __init__(self) -> None:
        stalled = condition("Stalled", "OutOfMemory", "needs 2 GiB more")
        self.found = {"FineTuneJob": job(stalled), "InferenceDeployment": endpoint("")}
        self.called: list[tuple[str, ...]] = []

    @override
    def object(self, kind: str, namespace: str, name: str) -> Object | None:
        return self.found[kind]

    @override
    def events(self, namespace: str) -> list[Object]:
        return []

    @override
    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        self.called.append(arguments)
        return "[pod/train] Killed\n"


def test_the_failure_of_a_run_has_the_logs_of_its_pods_and_the_commands_for_more() -> None:
    cluster = Cluster()
    story = Story(cluster, Console(file=io.StringIO()))
    with pytest.raises(OperationError) as error:
        story._follow(story._follower("ticket-routing"), lambda _: False)
    assert str(error.value) == "FineTuneJob ticket-routing: OutOfMemory: needs 2 GiB more"
    assert error.value.details == ("[pod/train] Killed",)
    assert error.value.commands == (
        "kubectl -n finetune-demo describe finetunejob ticket-routing",
        "kubectl -n finetune-demo describe inferencedeployment ticket-routing",
        "kubectl -n finetune-demo get pods",
        "kubectl -n finetune-demo logs --selector='finetune.dev/run in (u,e)' --all-containers --prefix",
        "kubectl -n finetune-system logs deployment/finetune-operator",
    )
    assert cluster.called == [
        (
            "logs", "--namespace=finetune-demo", "--selector=finetune.dev/run in (u,e)", "--tail=5",
            "--all-containers", "--prefix", "--ignore-errors",
        )
    ]  # fmt: skip
