"""The benchmark of serving: pairs in turns, their ratio, and what is kept of a step. No server is started."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tools.bench.page import END, PAGE
from tools.peers import vllm
from tools.peers.serving import __main__ as command
from tools.peers.serving import streams
from tools.peers.serving.page import BEGIN, pairs_of, ratio
from tools.peers.serving.servers import RunningServer
from tools.peers.serving.streams import StreamsPair, StreamsResult

ALONE = StreamsResult(tokens=1000, seconds=10, first_token_seconds=0.5, processor_seconds=9)


def pair(factor: float) -> StreamsPair:
    """vLLM alone, and an endpoint with `factor` times its tokens per second."""
    return StreamsPair(ALONE, replace(ALONE, seconds=ALONE.seconds / factor))


def recorded(factor: float) -> dict[str, Any]:
    """The record of the step `vllm`."""
    pairs = [[asdict(each) for each in pair(factor * spread)] for spread in (0.99, 1.01)]
    speeds = {"vLLM": {str(number): asdict(ALONE) for number in (1, 8, 32)}}
    return {"starts": {"vLLM": {"cold": 30.0}}, "speeds": speeds, "compared": {command.MIDDLEWARE: pairs}}


def test_the_ratio_is_the_geometric_mean_with_its_interval() -> None:
    found = ratio([pair(0.5), pair(2.0)])
    # Student's t with one degree of freedom: 12.706.
    assert found.mean == pytest.approx(1)
    assert found.high == pytest.approx(math.exp(12.706 * math.log(2)), rel=1e-3)
    assert found.low == pytest.approx(1 / found.high)
    assert str(ratio([pair(0.99)] * 3)) == "0.990 (0.990 to 0.990)"


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


@pytest.mark.parametrize(("factor", "code"), [(0.99, 0), (0.97, 1)])
def test_steps_without_a_record_are_measured_and_the_middleware_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, code: int
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"{BEGIN}\nold\n{END}")
    measured: list[str] = []
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(command, "_record", lambda step: tmp_path / f"{step}.json")
    monkeypatch.setattr(vllm, "install", lambda: None)

    def measure(*_: object) -> dict[str, Any]:
        measured.append("vllm")
        return recorded(factor)

    monkeypatch.setattr(command, "STEPS", {"kept": None, "vllm": measure})
    (tmp_path / "kept.json").write_text(
        json.dumps({"starts": {"built-in": {"warm": 4.0}}, "speeds": {}, "compared": {}})
    )

    done = CliRunner().invoke(command.app, ["--page"])

    assert (done.exit_code, measured) == (code, ["vllm"])
    text = page.read_text()
    assert "| vLLM | 30.0 |  |" in text
    assert "| built-in |  | 4.0 |" in text
    assert (
        f"| {command.MIDDLEWARE} | 2 | {ratio(pairs_of(recorded(factor)['compared'][command.MIDDLEWARE]))} |"
        in text
    )


def test_an_unknown_step_is_refused() -> None:
    assert CliRunner().invoke(command.app, ["other"]).exit_code == 2


def test_the_page_has_a_place_for_the_tables() -> None:
    assert END in PAGE.read_text().partition(BEGIN)[2]
