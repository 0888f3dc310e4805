# SPDX-License-Identifier: Apache-2.0
"""More requests than slots: requests that wait or are rejected, and the metrics."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from finetune_trainer.serve import admission, routes
from tests.busyloops import busy_loops
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here, wait_until

LONG: dict[str, Any] = {"model": "base", "prompt": "The licence", "max_tokens": 300, "temperature": 0}
SHED = 'finetune_serve_requests_shed_total{{model="base",reason="{}"}}'
ENDLESS: dict[str, Any] = {**LONG, "max_tokens": 900_000}


@pytest.fixture(scope="module")
def narrow(root: Path) -> Iterator[Endpoint]:
    """A server with one slot and a queue of one."""
    config = serve_config(
        root, kind="endless", models=(), max_batch_size=1, max_queue=1, max_model_length=1_000_000
    )
    with served_here(config) as endpoint:
        yield endpoint


def test_over_the_queue_a_request_is_refused_with_429_and_a_time_to_come_again(narrow: Endpoint) -> None:
    together = threading.Barrier(8)

    def ask(_: int) -> openai.RateLimitError | None:
        together.wait()
        try:
            narrow.openai.completions.create(**LONG)
        except openai.RateLimitError as error:
            return error
        return None

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(ask, range(8)))

    refused = [outcome for outcome in outcomes if outcome is not None]
    assert 1 <= len(refused) <= 7
    times = {int(error.response.headers["retry-after"]) for error in refused}
    assert len(times) == len(refused), "as one request may wait, each gets a time of its own"
    assert min(times) >= 1
    for error in refused:
        assert error.type == "rate_limit_error"
        assert error.code == "rate_limit_exceeded"
    assert narrow.metric('finetune_serve_requests_total{code="429",model="base"}') == len(refused)
    assert narrow.metric(SHED.format("queue_full")) == len(refused)


@pytest.fixture
def occupied(narrow: Endpoint) -> Iterator[Endpoint]:
    """The narrow server while its slot is used."""
    with narrow.openai.completions.create(**ENDLESS, stream=True) as chunks:
        next(iter(chunks))
        yield narrow
    wait_until(lambda: narrow.metric("finetune_serve_running_requests") == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_has_waited_too_long_is_refused_so_that_the_client_comes_again(
    occupied: Endpoint, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT_SECONDS", 0.2)
    before = occupied.metric(SHED.format("waited"))

    with pytest.raises(openai.RateLimitError, match="too busy") as error:
        occupied.openai.completions.create(**LONG, stream=stream)

    assert int(error.value.response.headers["retry-after"]) >= 1
    assert occupied.metric(SHED.format("waited")) == before + 1
    assert occupied.metric("finetune_serve_queue_depth") == 0


def test_a_stream_whose_status_was_sent_is_not_refused_any_more(
    narrow: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "MAX_WAIT_SECONDS", 0.5)
    monkeypatch.setattr(routes, "SILENCE_SECONDS", 0.05)
    with ExitStack() as slot:
        chunks = slot.enter_context(narrow.openai.completions.create(**ENDLESS, stream=True))
        next(iter(chunks))
        body = {"model": "base", "prompt": "The licence", "max_tokens": 2, "stream": True}
        with narrow.http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            # Longer than a request may wait whose status was not sent.
            for _ in range(20):
                assert next(line for line in lines if line) == ": queued"
            slot.close()
            assert [line for line in lines if line.startswith("data")][-1] == "data: [DONE]"


def test_under_more_load_than_a_busy_machine_can_answer_no_request_fails_with_the_sdk(root: Path) -> None:
    config = serve_config(root, kind="endless", models=(), max_batch_size=2, max_queue=4)
    with served_here(config) as server, busy_loops():
        sdk, request = server.sdk(), {**LONG, "max_tokens": 20}

        def ask_twice(_: int) -> int:
            streamed, whole = (
                sdk.completions.create(**request, stream=True),
                sdk.completions.create(**request),
            )
            return len(list(streamed)) + len(whole.choices)

        # So that a time per answer is measured.
        sdk.completions.create(**request)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask_twice, range(8)))

        assert len(answers) == 8
        assert min(answers) > 1
        sheds = sum(server.metric(SHED.format(reason)) for reason in admission.SHED_REASONS)
        assert sheds > 0
        assert server.metric('finetune_serve_requests_total{code="429",model="base"}') == sheds
        wait_until(lambda: server.metric('finetune_serve_requests_total{code="200",model="base"}') == 17)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(narrow: Endpoint, *, stream: bool) -> None:
    sample = 'finetune_serve_requests_total{code="499",model="base"}'
    before = narrow.metric(sample)

    if stream:
        with narrow.openai.completions.create(**ENDLESS, stream=True) as chunks:
            next(iter(chunks))
    else:
        with pytest.raises(openai.APITimeoutError):
            narrow.openai.with_options(timeout=0.5).completions.create(**ENDLESS)

    wait_until(lambda: narrow.metric("finetune_serve_running_requests") == 0)
    wait_until(lambda: narrow.metric(sample) == before + 1)
    assert narrow.openai.completions.create(model="base", prompt="a").usage is not None


def test_metrics_count_requests_and_tokens_by_model_and_time_them(endpoint: Endpoint) -> None:
    def values() -> list[float]:
        return [
            endpoint.metric(sample)
            for sample in (
                'finetune_serve_requests_total{code="200",model="summaries"}',
                'finetune_serve_tokens_total{kind="prompt",model="summaries"}',
                'finetune_serve_tokens_total{kind="completion",model="summaries"}',
                'finetune_serve_time_to_first_token_seconds_count{model="summaries"}',
                'finetune_serve_request_duration_seconds_count{model="summaries"}',
                'finetune_serve_inter_token_latency_seconds_count{model="summaries"}',
            )
        ]

    before = values()
    answer = endpoint.openai.completions.create(model="summaries", prompt="The licence", max_tokens=4)

    assert answer.usage is not None
    wait_until(lambda: values()[0] == before[0] + 1)
    assert [after - start for after, start in zip(values(), before, strict=True)] == [
        1,
        answer.usage.prompt_tokens,
        answer.usage.completion_tokens,
        1,
        1,
        answer.usage.completion_tokens - 1,
    ]


def test_a_model_that_nobody_has_asked_yet_has_its_series(endpoint: Endpoint) -> None:
    """A rate over a series that starts with its first request would miss that request."""
    text = endpoint.http.get("/metrics").text
    for model in ("base", "summaries", "tickets.v1"):
        for code in (200, 500):
            assert f'finetune_serve_requests_total{{code="{code}",model="{model}"}}' in text
        assert f'finetune_serve_model_info{{digest="",model="{model}"' in text


def test_names_that_are_not_served_share_one_label(endpoint: Endpoint) -> None:
    sample = 'finetune_serve_requests_total{code="404",model="unknown"}'
    before = endpoint.metric(sample)

    for name in ("gpt-4", "x" * 100):
        with pytest.raises(openai.NotFoundError):
            endpoint.openai.completions.create(model=name, prompt="a")

    assert endpoint.metric(sample) == before + 2
    assert "gpt-4" not in endpoint.http.get("/metrics").text


@pytest.mark.parametrize("path", ["/v1/models", "/nothing"])
def test_each_response_has_the_id_of_its_request(endpoint: Endpoint, path: str) -> None:
    chosen = endpoint.http.get(path, headers={"X-Request-Id": "shop-17"})
    assert chosen.headers["x-request-id"] == "shop-17"
    assert len(endpoint.http.get(path).headers["x-request-id"]) == 32
