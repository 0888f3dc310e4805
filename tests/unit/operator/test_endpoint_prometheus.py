# SPDX-License-Identifier: Apache-2.0
"""Analyses with queries to a Prometheus: what their Job gets, and what a failed query gate does."""

from typing import Any

from finetune_operator.plan import Manifest
from finetune_trainer.contract.analysis import (
    AnalysisFigure,
    AnalyzeResult,
    PrometheusQuery,
    PrometheusSource,
)
from finetune_trainer.contract.environment import CREDENTIALS_MOUNT
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.endpoints import EndpointCluster, states
from tests.unit.operator.test_endpoint_analysis import ANALYSIS, config_of, end, jobs, measured

QUERY = 'sum(rate(refusals_total{revision="{{ revision }}"}[{{ interval }}]))'
GATE: Manifest = {"metric": "prometheus/refusals", "max": 0.1, "maxRatio": 1.5, "maxDecrease": 0.2}
SOURCE: Manifest = {
    "address": "https://prometheus.monitoring:9090",
    "credentialsSecretRef": {"name": "reader"},
    "queries": [{"name": "refusals", "query": QUERY}],
}


def queried(**source: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is analyzed by a query."""
    return measured(analysis={**ANALYSIS, "gates": [GATE], "prometheus": {**SOURCE, **source}})


def mounts(cluster: EndpointCluster) -> dict[str, str]:
    """Secrets that the pod of the Job mounts, with their paths."""
    (job,) = jobs(cluster)
    pod = cluster.cluster.objects["Job", job]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = [volume for volume in pod["volumes"] if "secret" in volume]
    return {volume["secret"]["secretName"]: paths[volume["name"]] for volume in volumes}


def test_the_job_gets_the_queries_and_what_their_placeholders_stand_for() -> None:
    cluster, old, new = queried()
    (job,) = jobs(cluster)
    assert config_of(cluster, job).prometheus == PrometheusSource(
        address="https://prometheus.monitoring:9090",
        credentials=SecretMount(name="reader", path=f"{CREDENTIALS_MOUNT}/prometheus"),
        endpoint="desk",
        namespace="team",
        revision=new,
        stable_revision=old,
        queries=(PrometheusQuery(name="refusals", query=QUERY),),
    )
    assert mounts(cluster) == {"reader": f"{CREDENTIALS_MOUNT}/prometheus"}


def test_without_credentials_the_pod_mounts_no_secret() -> None:
    cluster, _, _ = queried(credentialsSecretRef=None)
    (job,) = jobs(cluster)
    source = config_of(cluster, job).prometheus
    assert source is not None
    assert source.credentials is None
    assert mounts(cluster) == {}


def test_another_query_measures_again() -> None:
    cluster, _, _ = queried()
    (before,) = jobs(cluster)
    analysis = {**ANALYSIS, "gates": [GATE], "prometheus": {**SOURCE, "address": "http://thanos:9090"}}
    cluster.edit(strategy={**cluster.endpoint.spec.strategy.to_dict(), "analysis": analysis})
    cluster.settle()
    (after,) = jobs(cluster)
    assert after != before


def test_a_failed_query_rolls_back_and_its_value_and_bounds_say_why() -> None:
    cluster, old, new = queried()
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    figure = AnalysisFigure(metric="prometheus/refusals", value=0.3, stable=0.01, verdict="Fail")
    found = AnalyzeResult(verdict="Fail", figures=(figure,), requests=120, stable_requests=480)
    result = StageResult(stage="analyze", run=config.run, outcome="Succeeded", analyze=found)
    end(cluster, job, config.bind(result).to_json())
    cluster.settle()
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    _, message = cluster.condition("Stalled") or ("", "")
    assert "prometheus/refusals 0.3 (stable 0.01 - 0.2; max 0.1; stable 0.01 × 1.5)" in message
    (event,) = [each for each in cluster.cluster.events if each.reason == "RolledBack"]
    assert "prometheus/refusals 0.3" in event.message
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == new]
    assert entry.analysis is not None
    assert [each.metric for each in entry.analysis.figures] == ["prometheus/refusals"]
