# SPDX-License-Identifier: Apache-2.0
"""The stage that analyzes a new revision, against real servers with the metrics of the engines."""

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from finetune_trainer.analyze import pod_metrics, stage
from finetune_trainer.analyze.gates import Evidence, decide, look_seconds
from finetune_trainer.analyze.pod_metrics import PodMetrics, read_metrics
from finetune_trainer.analyze.probing import probe_requests
from finetune_trainer.analyze.stage import MeasuringClock
from finetune_trainer.contract.analysis import AnalysisGateBound, AnalyzeResult
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig, ProbedModel
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.serving_metrics import ServingMetrics
from finetune_trainer.store import open_store
from tests.trainer.workbench import Workbench

VLLM_SCRAPE = Path(__file__).parents[1] / "recording" / "vllm-0.32.txt"
OWNER = Owner(kind="InferenceDeployment", namespace="team", name="desk", uid="e1")
ERRORS = AnalysisGateBound(metric="error_rate", max=0.05, max_increase=0.02)
FIRST_TOKEN = AnalysisGateBound(metric="time_to_first_token_seconds", max=2, max_ratio=1.5)
QUEUE = AnalysisGateBound(metric="queue_depth", max=4)
DIGEST = f"sha256:{'a' * 64}"
"""Digest of the model that the pods serve."""


class Clock:
    """A clock that waits for nothing."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds

    def measuring(self) -> MeasuringClock:
        return MeasuringClock(lambda: self.seconds, self.sleep)


Traffic = Callable[[ServingMetrics], None]
"""What a pod serves between two readings of its metrics."""


def traffic(requests: int = 100, errors: int = 0, seconds: float = 0.2, queue: int = 0) -> Traffic:
    def serve(metrics: ServingMetrics) -> None:
        metrics.requests.labels("tuned", "200").inc(requests - errors)
        metrics.requests.labels("tuned", "503").inc(errors)
        metrics.requests.labels("tuned", "400").inc(1000)
        for _ in range(requests - errors):
            metrics.time_to_first_token.labels("tuned").observe(seconds)
        metrics.queue_depth.set(queue)

    return serve


def answering(code: str = "200", seconds: float = 0.2) -> Traffic:
    """One request that a pod answers."""

    def serve(metrics: ServingMetrics) -> None:
        metrics.requests.labels("tuned", code).inc()
        if code == "200":
            metrics.time_to_first_token.labels("tuned").observe(seconds)

    return serve


ANSWERS = answering()
Text = Callable[[Any], str | None]
"""The answer to the body of a request; None for an error."""


@contextmanager
def pod(
    serve: Traffic,
    metrics: ServingMetrics | None = None,
    asked: list[Any] | None = None,
    answer: Traffic = ANSWERS,
    *,
    digest: str = DIGEST,
    text: Text = lambda _: "billing",
) -> Iterator[str]:
    """A server with the metrics of the built-in engine; the URL of the metrics.

    Each body that it is asked is put into `asked`, with the Authorization header.
    """
    found = metrics or ServingMetrics()
    found.model_info.labels("tuned", digest, "Adapter").set(1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = found.render()
            serve(found)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked is not None:
                asked.append((self.path, self.headers["Authorization"], body))
            answer(found)
            content = text(body)
            self.send_response(200 if content is not None else 503)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/metrics"
        finally:
            # Without it, the thread of a closed server uses a whole processor.
            server.shutdown()


def analyze(
    new: Sequence[Traffic], stable: Sequence[Traffic], *gates: AnalysisGateBound, **settings: Any
) -> AnalyzeResult:
    with ExitStack() as stack:
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=StoreConfig(uri="", path=""),
            pods=tuple(stack.enter_context(pod(each)) for each in new),
            stable_pods=tuple(stack.enter_context(pod(each)) for each in stable),
            gates=gates,
            **{"duration_seconds": 60, "max_duration_seconds": 240, "min_requests": 100} | settings,
        )
        return stage.run(config, Clock().measuring())


def test_a_revision_like_the_stable_one_passes_with_its_figures() -> None:
    result = analyze([traffic()] * 2, [traffic(300)], ERRORS, FIRST_TOKEN, QUEUE)
    assert result.verdict == "Pass"
    assert result.seconds == 60
    errors, first_token, queue = result.figures
    assert (errors.value, errors.stable, errors.low) == (0, 0, 0)
    assert first_token.value == pytest.approx(0.243, abs=0.001), "0.95 of the bucket from 0.1 to 0.25"
    assert (first_token.low, first_token.high) == (0.1, 0.25)
    assert queue.value == 0
    assert (result.requests, result.stable_requests) == (2400, 3600), "twelve readings after the first"


def test_errors_fail_at_the_first_look() -> None:
    result = analyze([traffic(errors=30)], [traffic()], ERRORS)
    assert (result.verdict, result.requests, result.seconds) == ("Fail", 300, 15)
    (figure,) = result.figures
    assert (figure.value, figure.stable) == (0.3, 0)
    assert figure.low is not None
    assert 0.05 < figure.low < 0.3


def test_a_slow_revision_fails_only_in_comparison() -> None:
    slow = [traffic(seconds=1.5)]
    assert analyze(slow, [traffic(seconds=0.2)], FIRST_TOKEN).verdict == "Fail"
    assert analyze(slow, [traffic(seconds=1.5)], FIRST_TOKEN).figures[0].stable is not None


def test_a_full_queue_fails() -> None:
    result = analyze([traffic(queue=9)], [traffic()], QUEUE)
    assert (result.verdict, result.figures[0].value) == ("Fail", 8.308), (
        "the mean of 13 readings, of which one is 0"
    )


def test_too_little_traffic_is_inconclusive_at_the_max_duration() -> None:
    result = analyze([traffic(requests=2)], [traffic()], ERRORS, FIRST_TOKEN)
    assert result.verdict == "Inconclusive"
    assert (result.seconds, result.requests) == (240, 96)
    assert {figure.verdict for figure in result.figures} == {"Inconclusive"}


def test_more_traffic_in_the_rest_of_the_time_decides() -> None:
    result = analyze([traffic(requests=5)], [traffic()], ERRORS)
    assert (result.verdict, result.seconds, result.requests) == ("Pass", 120, 120)


def test_a_measurement_of_the_whole_duration_does_not_pass_earlier() -> None:
    result = analyze([traffic()], [traffic()], ERRORS, whole_duration=True)
    assert (result.verdict, result.seconds) == ("Pass", 240)


def test_another_pod_with_the_address_of_one_that_has_ended_is_not_counted() -> None:
    readings = iter(range(100))

    def serve(metrics: ServingMetrics) -> None:
        if next(readings) < 4:
            traffic()(metrics)
            return
        metrics.model_info.clear()
        metrics.model_info.labels("other", f"sha256:{'b' * 64}", "Adapter").set(1)
        traffic(1000, errors=900)(metrics)

    result = analyze([serve], [traffic()], ERRORS, min_requests=500)
    assert (result.verdict, result.requests) == ("Inconclusive", 400)
    assert "it does not show the models that it had before" in result.problem


def test_a_stable_revision_without_requests_is_compared_by_its_past() -> None:
    past = ServingMetrics()
    traffic(1000)(past)
    with pod(traffic(errors=30)) as new, pod(lambda _: None, past) as stable:
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=StoreConfig(uri="", path=""),
            pods=(new,),
            stable_pods=(stable,),
            baseline="Past",
            gates=(AnalysisGateBound(metric="error_rate", max_increase=0.02),),
            duration_seconds=60,
            max_duration_seconds=60,
            min_requests=50,
        )
        result = stage.run(config, Clock().measuring())
    assert (result.verdict, result.stable_requests) == ("Fail", 1000)


def test_a_pod_that_sends_its_metrics_slowly_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_metrics, "TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server, httpx.Client(trust_env=False) as client:
        ended = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                for _ in range(100):
                    if ended.wait(0.05):
                        break
                    connection.sendall(b"#")

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        with pytest.raises(ValueError, match=r"its metrics took more than 0\.2 s"):
            pod_metrics.get_metrics(client, f"http://127.0.0.1:{server.getsockname()[1]}/metrics")
        ended.set()
        thread.join()


def test_pods_that_cannot_be_read_are_named() -> None:
    with pod(traffic()) as gone:
        pass
    config = AnalyzeConfig(
        owner=OWNER,
        run="e1",
        store=StoreConfig(uri="", path=""),
        pods=(gone,),
        gates=(ERRORS,),
        duration_seconds=60,
        max_duration_seconds=60,
        min_requests=1,
    )
    result = stage.run(config, Clock().measuring())
    assert result.verdict == "Inconclusive"
    assert result.problem.startswith(f"1 of 1 pods could not be read; {gone}: ConnectError")


def test_without_a_stable_revision_a_comparison_is_inconclusive_and_a_bound_decides() -> None:
    assert analyze([traffic()], [], ERRORS).verdict == "Inconclusive"
    assert analyze([traffic()], [], AnalysisGateBound(metric="error_rate", max=0.05)).verdict == "Pass"
    assert analyze([traffic(errors=50)], [], ERRORS).verdict == "Fail"


# Probes

ROWS = tuple(Row.pair(f"order {number}?", "billing") for number in range(4))


def probed(
    root: Path, *, bad: bool, reply_seconds: float = 0, **settings: Any
) -> tuple[AnalyzeResult, list[Any], list[Any]]:
    """The result of an analysis without traffic, and what was asked of both revisions."""
    bench, keys, clock = Workbench(root), root / "keys", Clock()

    def reply(_: Any) -> str:
        clock.sleep(reply_seconds)
        return "billing"

    digest = bench.dataset(ROWS[:1], test=ROWS)
    keys.mkdir()
    (keys / "a-key").write_text("sk-1\n")
    new_asked: list[Any] = []
    stable_asked: list[Any] = []
    answer = answering("500" if bad else "200")
    with (
        pod(lambda _: None, asked=new_asked, answer=answer, text=reply) as new,
        pod(lambda _: None, asked=stable_asked) as stable,
    ):
        probe = AnalysisProbe(
            requests=60,
            models=(ProbedModel(name="tuned", dataset=digest), ProbedModel(name="other", dataset=digest)),
            pods=(new.replace("/metrics", "/v1"),),
            stable_pods=(stable.replace("/metrics", "/v1"),),
            digests=(DIGEST,),
            stable_digests=(DIGEST,),
            api_keys_path=str(keys),
        )
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=bench.store_config,
            pods=(new,),
            stable_pods=(stable,),
            gates=(ERRORS,),
            probe=probe,
            **{"duration_seconds": 60, "max_duration_seconds": 120, "min_requests": 50} | settings,
        )
        return stage.run(config, clock.measuring()), new_asked, stable_asked


@pytest.mark.parametrize(("bad", "verdict"), [(False, "Pass"), (True, "Fail")])
def test_probes_with_held_out_rows_decide_without_traffic(tmp_path: Path, verdict: str, *, bad: bool) -> None:
    result, asked, stable_asked = probed(tmp_path, bad=bad)
    assert (result.verdict, result.requests, result.stable_requests) == (verdict, 60, 60)
    assert len(asked) == len(stable_asked) == 60
    path, key, body = asked[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer sk-1")
    assert body["messages"] == [{"role": "user", "content": "order 0?"}]
    assert [each["model"] for _, _, each in asked[:3]] == ["tuned", "other", "tuned"]


def test_too_few_probes_are_inconclusive(tmp_path: Path) -> None:
    result, _, _ = probed(tmp_path, bad=False, min_requests=100)
    assert (result.verdict, result.requests) == ("Inconclusive", 60)


def test_probes_that_are_answered_slowly_end_after_the_max_duration(tmp_path: Path) -> None:
    result, asked, _ = probed(tmp_path, bad=False, reply_seconds=60)
    assert (result.verdict, result.seconds, len(asked)) == ("Inconclusive", 240, 2)


def test_probes_without_rows_fail_before_anything_is_measured(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    model = ProbedModel(name="tuned", dataset=bench.dataset(ROWS))
    with pytest.raises(StageFailure, match="have no test rows"):
        probe_requests(AnalysisProbe(requests=5, models=(model,), pods=()), open_store(bench.store_config))


# Without servers


def evidence(new: PodMetrics, *, looks: int = 1) -> Evidence:
    return Evidence(new, PodMetrics(), 50, looks, is_long_enough=True)


def test_few_slow_requests_do_not_fail() -> None:
    gate = AnalysisGateBound(metric="time_to_first_token_seconds", max=0.1)
    buckets = {0.1: 0.0, float("inf"): 5.0}
    few = PodMetrics(requests=5, histograms={"time_to_first_token_seconds": buckets})
    assert decide(gate, evidence(few)).verdict == "Inconclusive"
    many = PodMetrics(requests=500, histograms={"time_to_first_token_seconds": {0.1: 0, float("inf"): 500}})
    assert decide(gate, evidence(many)).verdict == "Fail"


def test_a_metric_of_a_newer_operator_decides_nothing_and_the_problem_says_what_to_do() -> None:
    newer = AnalysisGateBound(metric="cost/token", max=0.01)
    result = analyze([traffic(errors=30)], [traffic()], newer)
    assert (result.verdict, result.figures[0].value) == ("Inconclusive", None)
    assert result.problem == (
        "the trainer image does not know the metric cost/token: update images.trainer of the ComputeProfile"
    )


@pytest.mark.parametrize(
    ("requests", "errors", "verdict"), [(3, 0, "Inconclusive"), (300, 280, "Inconclusive"), (300, 9, "Fail")]
)
def test_the_slow_tokens_of_few_answers_do_not_fail(requests: int, errors: int, verdict: str) -> None:
    gate = AnalysisGateBound(metric="inter_token_latency_seconds", max=0.1)
    tokens = {0.1: 0.0, math.inf: 900.0}
    new = PodMetrics(requests, errors, histograms={"inter_token_latency_seconds": tokens})
    assert decide(gate, evidence(new)).verdict == verdict


@pytest.mark.parametrize(("requests", "verdict"), [(3, "Inconclusive"), (300, "Pass")])
def test_the_fast_tokens_of_few_answers_do_not_pass(requests: int, verdict: str) -> None:
    gate = AnalysisGateBound(metric="inter_token_latency_seconds", max=0.1)
    tokens = {0.1: 900.0, math.inf: 900.0}
    new = PodMetrics(requests, histograms={"inter_token_latency_seconds": tokens})
    found = decide(gate, evidence(new))
    assert (found.verdict, found.value) == (verdict, 0.095)


def test_requests_beyond_the_highest_edge_do_not_pass() -> None:
    gate = AnalysisGateBound(metric="time_to_first_token_seconds", max=1)
    counts = {0.5: 93.0, 1.0: 93.0, float("inf"): 100.0}
    found = PodMetrics(requests=100, histograms={"time_to_first_token_seconds": counts})
    assert decide(gate, evidence(found)).value == 1
    assert decide(gate, evidence(found)).verdict == "Inconclusive"


def test_requests_that_are_refused_because_of_load_are_no_errors_but_have_a_rate_of_their_own() -> None:
    new = evidence(PodMetrics(requests=100, sheds=100))
    errors = decide(AnalysisGateBound(metric="error_rate", max=0), new)
    sheds = decide(AnalysisGateBound(metric="shed_rate", max=0.1), new)
    increase = decide(AnalysisGateBound(metric="shed_rate", max_increase=0.1), new)
    assert (errors.verdict, errors.value) == ("Pass", 0)
    assert (sheds.verdict, sheds.value) == ("Fail", 0.5)
    assert increase.verdict == "Inconclusive", "the stable revision has no requests"


def test_each_look_at_the_figures_needs_stronger_evidence() -> None:
    gate = AnalysisGateBound(metric="error_rate", max=0.05)
    once = decide(gate, evidence(PodMetrics(requests=100, errors=10)))
    often = decide(gate, evidence(PodMetrics(requests=100, errors=10), looks=10))
    assert (once.verdict, often.verdict) == ("Fail", "Inconclusive")


def test_the_looks_double_from_a_quarter_of_the_duration_to_the_max() -> None:
    assert look_seconds(60, 600) == [15, 30, 60, 120, 240, 480, 600]
    assert look_seconds(60, 60) == [15, 30, 60]


def test_the_metrics_of_vllm_are_read() -> None:
    text = """\
# TYPE finetune_serve_requests_total counter
finetune_serve_requests_total{code="200",model="base"} 40.0
finetune_serve_requests_total{code="200",model="router"} 50.0
finetune_serve_requests_total{code="500",model="router"} 4.0
finetune_serve_requests_total{code="504",model="router"} 6.0
finetune_serve_requests_total{code="429",model="router"} 5.0
finetune_serve_requests_total{code="404",model="unknown"} 7.0
# TYPE http_requests_total counter
http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"} 1000.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="base"} 80.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="base"} 90.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="base"} 90.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="base"} 30.0
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="base"} 900.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="base"} 3.0
"""
    found = read_metrics(text)
    assert (found.requests, found.errors, found.sheds, found.queue) == (100, 10, 5, 3)
    assert list(found.histograms["time_to_first_token_seconds"].values()) == [80, 90]
    assert found.histograms["inter_token_latency_seconds"] == {float("inf"): 900}


def test_the_metrics_of_a_real_server_of_vllm_are_read() -> None:
    found = read_metrics(VLLM_SCRAPE.read_text())
    assert found.requests > 0
    assert (found.errors, found.queue) == (0, 0)
    assert all(counts[math.inf] > 0 for counts in found.histograms.values())
    assert len(found.histograms) == 2


def test_a_server_that_restarted_counts_from_zero_again() -> None:
    assert PodMetrics(requests=30, errors=2).since(PodMetrics(requests=500, errors=5)).requests == 30
    assert PodMetrics(requests=530, errors=7).since(PodMetrics(requests=500, errors=5)).errors == 2


@pytest.mark.parametrize(
    "before",
    [
        PodMetrics(requests=10, errors=9),
        PodMetrics(requests=10, histograms={"inter_token_latency_seconds": {math.inf: 500}}),
    ],
    ids=["errors", "tokens"],
)
def test_a_server_that_restarted_and_has_more_requests_than_before_is_noticed(before: PodMetrics) -> None:
    tokens = {"inter_token_latency_seconds": {math.inf: 90.0}}
    now = PodMetrics(requests=30, errors=8, histograms=tokens)
    assert now.since(before) == now


def test_a_histogram_that_one_reading_lacks_is_no_restart_and_is_not_counted_again() -> None:
    """The pod serves these texts one after the other."""
    histogram = 'vllm:time_to_first_token_seconds_bucket{{le="+Inf"}} {}.0\n'
    requests = 'finetune_serve_requests_total{{code="200"}} {}.0\n'
    texts = [
        requests.format(10) + histogram.format(50),
        requests.format(12),
        requests.format(15) + histogram.format(70),
        requests.format(3),
        requests.format(4) + histogram.format(2),
    ]
    answers = iter(texts)
    client = httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(200, text=next(answers))))
    reader = pod_metrics.PodReader(["http://pod:9090/metrics"], client)
    counts = []
    with ThreadPoolExecutor(1) as executor:
        for _ in texts:
            reader.read(executor)
            histograms = reader.metrics.histograms.get("time_to_first_token_seconds", {})
            counts.append((reader.metrics.requests, histograms.get(math.inf, 0)))
    assert counts == [(0, 0), (2, 0), (5, 20), (8, 20), (9, 22)]


def test_revisions_that_just_meet_their_bounds_rarely_fail_at_any_look() -> None:
    """At most 5 % of them, so at most 5 of 100 are expected: more than 11 have a probability of 0.4 %."""
    generator, failed = np.random.default_rng(7), 0
    gate = AnalysisGateBound(metric="error_rate", max=0.05, max_increase=0.04)
    sizes = [15, 30, 60, 120, 240, 480, 600]
    for _ in range(100):
        counts = [generator.random(sizes[-1]) < 0.05, generator.random(4 * sizes[-1]) < 0.01]
        for size in sizes:
            new, stable = (
                PodMetrics(requests=part, errors=float(count[:part].sum()))
                for count, part in zip(counts, (size, 4 * size), strict=True)
            )
            if decide(gate, Evidence(new, stable, 50, len(sizes), is_long_enough=True)).verdict == "Fail":
                failed += 1
                break
    assert failed <= 11
