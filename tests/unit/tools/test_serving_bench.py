# SPDX-License-Identifier: Apache-2.0
"""The benchmark of serving: pairs in turns, their ratio, and what is kept of a step. No server is started."""

import asyncio
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp
from typer.testing import CliRunner

from tools.bench.page import END, PAGE
from tools.bench.start.serving import ServingStart
from tools.bootstrap.skips import NO_TORCH, has_torch
from tools.peers import vllm
from tools.peers.serving import __main__ as command
from tools.peers.serving import eitherway, streams
from tools.peers.serving.page import BEGIN, mean_ratio, product
from tools.peers.serving.servers import RunningServer
from tools.peers.serving.streams import StreamsPair, StreamsResult

ALONE = StreamsResult(tokens=1000, seconds=10, first_token_seconds=0.5, processor_seconds=9)


def pair(factor: float) -> StreamsPair:
    """vLLM alone, and an endpoint with `factor` times its tokens per second."""
    return StreamsPair(ALONE, replace(ALONE, seconds=ALONE.seconds / factor))


def recorded(name: str, factor: float) -> dict[str, Any]:
    """The record of a step that compares."""
    return {"compared": {name: [[asdict(each) for each in found] for found in pairs_around(factor)]}}


def pairs_around(factor: float) -> list[StreamsPair]:
    return [pair(factor * spread) for spread in (0.99, 1.01)]


def test_the_ratio_is_the_geometric_mean_with_its_interval() -> None:
    found = mean_ratio([0.5, 2.0])
    # Student's t with one degree of freedom: 12.706.
    assert found.mean == pytest.approx(1)
    assert found.high == pytest.approx(math.exp(12.706 * math.log(2)), rel=1e-3)
    assert found.low == pytest.approx(1 / found.high)
    assert str(mean_ratio([0.99] * 3)) == "0.990 (0.990 to 0.990)"


def test_the_ratio_of_two_additions_uses_all_pairs_of_both() -> None:
    assert str(product([pair(0.99)] * 3, [pair(0.5)] * 2)) == "0.495 (0.495 to 0.495)"
    few, many = [pair(0.9), pair(1.1)], [pair(0.9), pair(1.1), pair(0.5), pair(0.5)]
    found = product(few, many)
    expected = mean_ratio(each.ratio for each in few).mean * mean_ratio(each.ratio for each in many).mean
    assert found.mean == pytest.approx(expected)
    # Welch's interval of two samples of equal size and spread: twice the degrees of freedom of one.
    both = product(few, few)
    error = math.log(1.1 / 0.9) / 2 * math.sqrt(2)
    assert math.log(both.high / both.mean) == pytest.approx(4.3027 * error, rel=1e-4)


def test_pairs_are_measured_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measure(server: RunningServer, *_: object) -> StreamsResult:
        asked.append(server.url)
        return replace(ALONE, tokens=1 if server.url == "alone" else 2)

    monkeypatch.setattr(streams, "measure", measure)
    alone, endpoint = (RunningServer(name, "gemma", None) for name in ("alone", "endpoint"))

    found = streams.alternating(alone, endpoint, 2)

    assert [(each.alone.tokens, each.endpoint.tokens) for each in found] == [(1, 2), (1, 2)]
    assert asked[2:] == ["endpoint", "alone", "alone", "endpoint"]


def test_the_cost_is_processor_time_per_thousand_tokens() -> None:
    assert (ALONE.rate, ALONE.cost) == (100, 9)


@pytest.mark.skipif(not has_torch(), reason=NO_TORCH)
@pytest.mark.parametrize(
    ("middleware", "service", "code"), [(0.99, 0.995, 0), (0.97, 1.05, 1), (0.99, 0.985, 1)]
)
def test_steps_without_a_record_are_measured_and_what_an_endpoint_adds_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, middleware: float, service: float, code: int
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"{BEGIN}\nold\n{END}")
    measured: list[str] = []
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "_record", lambda step: tmp_path / f"{step}.json")
    monkeypatch.setattr(vllm, "install", lambda: None)

    def measure(*_: object) -> dict[str, Any]:
        measured.append("vllm")
        speeds = {"vLLM": {str(number): asdict(ALONE) for number in (1, 8, 32)}}
        starts = {"vLLM": {"cold": 30.0}}
        return {"starts": starts, "speeds": speeds, **recorded(command.MIDDLEWARE, middleware)}

    monkeypatch.setattr(command, "STEPS", {"kept": None, "vllm": measure})
    kept = {"starts": {"built-in": {"warm": 4.0}}, "rollouts": {"Recreate": [30, 20, 22]}}
    start = ServingStart(bytes=2_500_000_000, readable_seconds=8, token_seconds=40)
    copied, cached = ([asdict(replace(start, readable_seconds=each))] for each in (8, 2))
    caches = {"cachestarts": {"vLLM": {"filled": 9, "copied": copied, "cached": cached}}}
    (tmp_path / "kept.json").write_text(json.dumps({**kept, **caches, **recorded("a Service", service)}))

    done = CliRunner().invoke(command.app, ["--page"])

    assert (done.exit_code, measured) == (code, ["vllm"])
    rows = page.read_text().splitlines()
    assert {"| vLLM | 30.0 |  |", "| built-in |  | 4.0 |", "| Recreate | 3 | 22.0 | 30.0 |"} <= set(rows)
    assert "| 1B, read in the cache | 2.5 | 9.0 | 2.00 | 4.0 | 40.0 |" in rows
    (row,) = (each for each in rows if each.startswith(f"| {command.MIDDLEWARE} |"))
    assert row.startswith(f"| {command.MIDDLEWARE} | 2 | {middleware:.3f} (")
    (row,) = (each for each in rows if each.startswith(f"| {command.MIDDLEWARE} and a Service |"))
    assert f" {middleware * service:.3f} (" in row


def test_requests_reach_one_vllm_through_the_middleware_and_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def named(name: str) -> ASGIApp:
        async def app(*_: object) -> None:
            seen.append(name)

        return app

    monkeypatch.setattr(eitherway, "EndpointMiddleware", lambda _: named("middleware"))
    app: Any = eitherway.EitherWay(named("vLLM"))
    server = RunningServer("http://vllm", "gemma", None)

    for kind, way in (("http", server), ("http", server.past_the_middleware()), ("lifespan", server)):
        headers = [(name.encode(), value.encode()) for name, value in way.headers.items()]
        asyncio.run(app({"type": kind, "headers": headers}, None, None))

    assert seen == ["middleware", "vLLM", "middleware"]


def test_an_unknown_step_is_refused() -> None:
    assert CliRunner().invoke(command.app, ["other"]).exit_code == 2


def test_the_page_has_a_place_for_the_tables() -> None:
    assert END in PAGE.read_text().partition(BEGIN)[2]
