# SPDX-License-Identifier: Apache-2.0
"""Gates on queries of the user, against a real Prometheus with recorded series of two revisions."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.analyze import stage
from finetune_trainer.analyze.stage import MeasuringClock
from finetune_trainer.contract.analysis import (
    AnalysisGateBound,
    AnalyzeResult,
    PrometheusQuery,
    PrometheusSource,
)
from finetune_trainer.contract.configs import AnalyzeConfig
from finetune_trainer.contract.references import SecretMount, StoreConfig
from finetune_trainer.remote import retries
from finetune_trainer.runtime.termination import StageFailure
from tests.prometheus import Prometheus, backfill
from tests.trainer.certificates import certificate
from tests.trainer.test_analyze import ERRORS, OWNER, Clock, Traffic, pod, traffic
from tools.cluster.layout import free_port

BEGAN: Final = float(int(time.time()) - 3600)
"""Start of the measurements, in seconds since 1970. The series are recorded around it."""
USER, PASSWORD = "analysis", "p-0123456789"
HASHED: Final = "$2b$04$abcdefghijklmnopqrstuuJCDRhyC30C5/thEn3yje/VUZk7t9jeW"
ONE_LOOK: Final[dict[str, Any]] = {"max_duration_seconds": 60}
"""Settings of a measurement that reads the queries once."""
NEW, STABLE, IDLE = "desk-2", "desk-1", "desk-0"
RATE: Final = (
    'sum(rate(shop_{}_total{{namespace="{{{{ namespace }}}}", endpoint="{{{{endpoint}}}}",'
    ' revision="{{{{ revision }}}}", shop=~"a;b|c\\\\+d"}}[{{{{ interval }}}}]))'
)
REFUSALS: Final = f"{RATE.format('refusals')}\n/ {RATE.format('answers')}"
"""0.3 of the answers of the new revision, 0.01 of those of the stable one."""


def series() -> Iterator[str]:
    """Counters that grow by the same number per second, from 5 minutes before the start to 10 after it.

    IDLE is like STABLE, and gets no requests after the start.
    """
    for name, new, stable in (("answers", 1, 1), ("refusals", 0.3, 0.01)):
        yield f"# TYPE shop_{name} counter"
        for revision, share in ((NEW, new), (STABLE, stable), (IDLE, stable)):
            for second in range(-300, 1 if revision == IDLE else 601, 5):
                labels = f'namespace="team",endpoint="desk",revision="{revision}",shop="c+d"'
                yield f"shop_{name}_total{{{labels}}} {share * (second + 300)} {BEGAN + second:.0f}"
    yield "# EOF"


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def prometheus(certified: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has the series, and is reached by TLS with a user's password only."""
    folder, (file, ca_pem) = tmp_path_factory.mktemp("prometheus"), certified
    backfill(folder, "\n".join(series()))
    web = {
        "tls_server_config": {"cert_file": str(file), "key_file": str(file)},
        "basic_auth_users": {USER: HASHED},
    }
    server = Prometheus(folder, {}, web=web, ca_pem=ca_pem, auth=(USER, PASSWORD))
    yield server
    server.close()


def secret(folder: Path, **keys: str) -> SecretMount:
    folder.mkdir()
    for key, value in keys.items():
        (folder / key).write_text(value)
    return SecretMount(name="prometheus-reader", path=str(folder))


@pytest.fixture
def credentials(tmp_path: Path, prometheus: Prometheus, certified: tuple[Path, str]) -> SecretMount:
    return secret(
        tmp_path / "secret",
        endpoint=prometheus.address,
        username=USER,
        password=PASSWORD,
        caBundle=certified[1],
    )


def gate(**bounds: float) -> AnalysisGateBound:
    return AnalysisGateBound(metric="prometheus/refusals", **bounds)


def analyze(
    address: str,
    credentials: SecretMount | None,
    *gates: AnalysisGateBound,
    query: str = REFUSALS,
    stable: str = STABLE,
    new: Traffic | None = None,
    more_pods: tuple[str, ...] = (),
    **settings: Any,
) -> AnalyzeResult:
    """The result of an analysis of the revision NEW."""
    clock = Clock()
    source = PrometheusSource(
        address=address,
        credentials=credentials,
        endpoint="desk",
        namespace="team",
        revision=NEW,
        stable_revision=stable,
        queries=(PrometheusQuery(name="refusals", query=query),),
    )
    with ExitStack() as stack:
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=StoreConfig(uri="", path=""),
            pods=(stack.enter_context(pod(new or traffic())), *more_pods),
            stable_pods=(stack.enter_context(pod(traffic())),),
            gates=gates,
            prometheus=source,
            **{"duration_seconds": 60, "max_duration_seconds": 240, "min_requests": 100} | settings,
        )
        measuring = MeasuringClock(lambda: clock.seconds, clock.sleep, lambda: BEGAN + clock.seconds)
        return stage.run(config, measuring)


@pytest.mark.parametrize(
    "bounds",
    [{"max": 0.05}, {"max_ratio": 1.5}, {"max_increase": 0.1}, {"min": 0.5}],
    ids=lambda bounds: next(iter(bounds)),
)
def test_a_value_that_misses_its_bound_fails_after_the_duration(
    prometheus: Prometheus, credentials: SecretMount, bounds: dict[str, float]
) -> None:
    result = analyze(prometheus.address, credentials, gate(**bounds))
    assert (result.verdict, result.seconds, result.problem) == ("Fail", 60, "")
    (figure,) = result.figures
    assert (figure.metric, figure.value, figure.low) == ("prometheus/refusals", 0.3, None)
    is_compared = bounds.keys() & {"max_ratio", "max_increase"}
    assert figure.stable == (0.01 if is_compared else None)


@pytest.mark.parametrize(
    "bounds", [{"max": 0.31}, {"max_ratio": 31}, {"max_increase": 0.3}, {"min": 0.2, "max_decrease": 0}]
)
def test_values_within_all_bounds_pass(
    prometheus: Prometheus, credentials: SecretMount, bounds: dict[str, float]
) -> None:
    result = analyze(prometheus.address, credentials, gate(**bounds), ERRORS)
    assert (result.verdict, result.seconds) == ("Pass", 60)
    assert [figure.verdict for figure in result.figures] == ["Pass", "Pass"]


@pytest.mark.parametrize(("offset", "stable"), [("0.01", 0), ("0.5", -0.49)], ids=["zero", "negative"])
def test_a_ratio_to_a_value_that_is_not_above_0_decides_nothing_and_the_problem_says_why(
    prometheus: Prometheus, credentials: SecretMount, offset: str, stable: float
) -> None:
    query = f"round({REFUSALS} - {offset}, 0.01)"
    result = analyze(prometheus.address, credentials, gate(max_ratio=1.5), query=query, **ONE_LOOK)
    assert (result.verdict, result.figures[0].stable) == ("Inconclusive", stable)
    assert result.problem == (
        f"prometheus/refusals: the stable revision has {stable:g}, and maxRatio needs a value above 0: use"
        " maxIncrease"
    )


def test_the_problem_of_a_query_is_named_although_a_pod_could_not_be_read(
    prometheus: Prometheus, credentials: SecretMount
) -> None:
    ended = f"http://127.0.0.1:{free_port()}/metrics"
    result = analyze(
        prometheus.address, credentials, gate(max=0.5), query="sum(", more_pods=(ended,), **ONE_LOOK
    )
    assert result.problem.startswith(f"prometheus/refusals of {NEW}: {prometheus.address}: status 400")
    assert "1 of 2 pods" in result.problem


def test_a_value_below_that_of_the_stable_revision_fails(
    prometheus: Prometheus, credentials: SecretMount
) -> None:
    accepted = f"1 - {REFUSALS}"
    result = analyze(prometheus.address, credentials, gate(max_decrease=0.1), query=accepted)
    (figure,) = result.figures
    assert (result.verdict, figure.value, figure.stable) == ("Fail", 0.7, 0.99)


@pytest.mark.parametrize("bounds", [{"max": 0.05}, {"max": 0.31}])
def test_a_value_of_too_few_requests_decides_nothing(
    prometheus: Prometheus, credentials: SecretMount, bounds: dict[str, float]
) -> None:
    result = analyze(prometheus.address, credentials, gate(**bounds), new=traffic(requests=2))
    assert (result.verdict, result.seconds, result.figures[0].value) == ("Inconclusive", 240, 0.3)


def test_in_a_bake_the_stable_revision_is_measured_before_it(
    prometheus: Prometheus, credentials: SecretMount
) -> None:
    settings: dict[str, Any] = {"baseline": "Past", "whole_duration": True, "stable": IDLE}
    bad = analyze(prometheus.address, credentials, gate(max_ratio=1.5), **settings)
    assert (bad.verdict, bad.seconds, bad.figures[0].stable) == ("Fail", 60, 0.01)
    good = analyze(prometheus.address, credentials, gate(max_ratio=31), **settings)
    assert (good.verdict, good.seconds, good.figures[0].stable) == ("Pass", 240, 0.01)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        (REFUSALS.replace("refusals", "absent"), "the query has no data: check its labels"),
        ('shop_answers_total{namespace="{{ namespace }}"}', "the query has 3 series: aggregate them to one"),
        (
            REFUSALS.replace("sum", "vector(0) * sum").replace("answers", "absent") + " or vector(0) / 0",
            "the query has the value nan: there may be no requests to divide by",
        ),
        ("sum(", 'status 400: invalid parameter "query": 1:5: parse error: unclosed left parenthesis'),
        ('"text"', "the query is a string: write one that is a number"),
    ],
    ids=["no data", "three series", "not a number", "no PromQL", "text"],
)
def test_a_query_without_one_value_is_inconclusive_and_the_problem_names_it(
    prometheus: Prometheus, credentials: SecretMount, query: str, problem: str
) -> None:
    result = analyze(prometheus.address, credentials, gate(max=0.5), query=query, **ONE_LOOK)
    assert (result.verdict, result.figures[0].value) == ("Inconclusive", None)
    assert result.problem.startswith(f"prometheus/refusals of {NEW}: {prometheus.address}: {problem}")


def test_a_failed_gate_of_the_pods_decides_although_a_query_has_no_value(
    prometheus: Prometheus, credentials: SecretMount
) -> None:
    result = analyze(
        prometheus.address, credentials, gate(max=0.5), ERRORS, query="sum(", new=traffic(errors=30)
    )
    assert (result.verdict, result.seconds) == ("Fail", 15)


def test_a_scalar_is_a_value(prometheus: Prometheus, credentials: SecretMount) -> None:
    result = analyze(prometheus.address, credentials, gate(max=0.5), query=f"scalar({REFUSALS})")
    assert (result.verdict, result.figures[0].value) == ("Pass", 0.3)


def test_a_wrong_password_is_named_and_not_shown(
    prometheus: Prometheus, certified: tuple[Path, str], tmp_path: Path
) -> None:
    wrong = secret(
        tmp_path / "wrong",
        endpoint=prometheus.address,
        username=USER,
        password="p-wrong-wrong",
        caBundle=certified[1],
    )
    result = analyze(prometheus.address, wrong, gate(max=0.5), **ONE_LOOK)
    assert result.verdict == "Inconclusive"
    assert "401" in result.problem
    assert result.problem.endswith("correct Secret prometheus-reader")
    assert "p-wrong-wrong" not in result.problem


def test_a_certificate_of_a_private_authority_needs_its_bundle(
    prometheus: Prometheus,
) -> None:
    result = analyze(prometheus.address, None, gate(max=0.5), **ONE_LOOK)
    assert "the server's certificate is not trusted" in result.problem
    assert result.problem.endswith(
        "add the certificate of its authority as caBundle to the Secret of credentialsSecretRef"
    )


def test_a_server_that_does_not_answer_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.0)
    address = f"http://127.0.0.1:{free_port()}"
    result = analyze(address, None, gate(max=0.5), **ONE_LOOK)
    assert result.verdict == "Inconclusive"
    assert result.problem.startswith(f"prometheus/refusals of {NEW}: {address}: ")
    assert result.problem.endswith("pods of this namespace can connect to it")


def test_a_missing_secret_fails_before_anything_is_measured(prometheus: Prometheus, tmp_path: Path) -> None:
    absent = SecretMount(name="prometheus-reader", path=str(tmp_path / "absent"))
    with pytest.raises(StageFailure, match="Secret prometheus-reader: it does not exist"):
        analyze(prometheus.address, absent, gate(max=0.5))
