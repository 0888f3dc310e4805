# SPDX-License-Identifier: Apache-2.0
"""Queries, panels and alerts use existing metrics and labels, including those of nodes with a GPU."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_trainer.serve.serving_metrics import RequestMetrics
from hack.metrics_page import QUERIES, RECORDING, Family, families, recorded
from tests.unit.test_alerts import ROOT, RULES, promtool

DASHBOARDS = [
    json.loads(file.read_text())
    for file in sorted((ROOT / "charts" / "finetune-operator" / "dashboards").glob("*.json"))
]
PANELS: dict[str, list[Any]] = {
    f"{dashboard['title']}: {panel['title']}": panel.get("targets", [])
    for dashboard in DASHBOARDS
    for panel in dashboard["panels"]
}
DOCUMENTED = [entry for section in yaml.safe_load(QUERIES.read_text()).values() for entry in section]
RECORDING_RULES = [
    rule for group in yaml.safe_load(RECORDING.read_text())["groups"] for rule in group["rules"]
]
VLLM_SCRAPE = ROOT / "tests" / "recording" / "vllm-0.32.txt"
ASKED = [
    *(pytest.param(rule["expr"], id=rule["record"]) for rule in RECORDING_RULES),
    *(pytest.param(entry["query"], id=entry["question"]) for entry in DOCUMENTED),
    *(pytest.param(target["expr"], id=title) for title, targets in PANELS.items() for target in targets),
    *(pytest.param(rule["expr"], id=alert) for alert, rule in RULES.items()),
    *(
        pytest.param(variable["query"]["query"], id=f"${variable['name']}")
        for dashboard in DASHBOARDS
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    ),
]

BY_PROMETHEUS = {"namespace", "pod", "instance", "job", "le", "inferencedeployment", "revision"}
"""Labels that the metrics themselves do not have."""
METRIC = re.compile(r"[\w:]*\b(?:finetune|process|vllm|http)[_:][\w:]+")
PARTS = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}


def all_families() -> Iterator[Family]:
    for metrics in families().values():
        yield from metrics
    yield from recorded()


def of_vllm() -> set[tuple[str, str]]:
    """Samples of the recorded scrape, as name and labels."""
    return set(re.findall(r"^([\w:]+)(?:{(.*)})? \S+$", VLLM_SCRAPE.read_text(), re.MULTILINE))


def names() -> set[str]:
    ours = {family.name + part for family in all_families() for part in PARTS.get(family.type, ("",))}
    ours |= {name for name, _ in of_vllm()}
    return ours | {
        sample.name for family in OperatorMetrics().registry.collect() for sample in family.samples
    }


def labels() -> set[str]:
    vllm = {label for _, labels in of_vllm() for label in re.findall(r'(\w+)="', labels)}
    return BY_PROMETHEUS.union(vllm, *(family.labels for family in all_families()))


def test_each_recording_rule_has_a_meaning() -> None:
    assert [family.name for family in recorded()] == [rule["record"] for rule in RECORDING_RULES]


@pytest.mark.parametrize("query", ASKED)
def test_a_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    asked = set(METRIC.findall(query))
    assert asked
    assert asked <= names()
    grouped = re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", query)
    used = {label.strip() for group in grouped for label in group.split(",")}
    assert used | set(re.findall(r'(\w+)(?:=|!=|=~|!~)"', query)) <= labels()


def test_a_legend_names_labels_that_there_are() -> None:
    legends = " ".join(target["legendFormat"] for targets in PANELS.values() for target in targets)
    assert set(re.findall(r"{{(\w+)}}", legends)) <= labels()


def training(pod: str, *, gpu: bool) -> Iterator[dict[str, str]]:
    """Series of a training pod, each with the value 1."""
    scraped = {"instance": pod, "namespace": "team", "pod": pod}
    for family in families()["training"]:
        if gpu or "device" not in family.labels:
            yield series(family.name, scraped | dict.fromkeys(family.labels, "0"))
    yield series("process_resident_memory_bytes", scraped)


def series(name: str, labels: dict[str, str]) -> dict[str, str]:
    shown = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{shown}}}", "values": "1x5"}


def answers(folder: Path, query: str, expected: set[str]) -> None:
    """Run the query on a pod with a GPU and on one without; all values are 1."""
    samples = [{"labels": labels, "value": 1} for labels in sorted(expected)]
    check = {"expr": query, "eval_time": "3m", "exp_samples": samples}
    given = [*training("with", gpu=True), *training("without", gpu=False)]
    case = {"interval": "1m", "input_series": given, "promql_expr_test": [check]}
    file = folder / "case.yaml"
    file.write_text(yaml.safe_dump({"tests": [case]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("query", [entry["query"] for entry in DOCUMENTED if entry.get("gpu")])
def test_a_query_about_gpus_is_answered_for_each_gpu(tmp_path: Path, query: str) -> None:
    answers(tmp_path, query, {'{device="0",instance="with",namespace="team",pod="with"}'})


def test_the_memory_panel_shows_the_gpu_and_the_process_only_where_there_is_none(tmp_path: Path) -> None:
    (target,) = PANELS["Finetune operator: Memory"]
    gpu = 'finetune_trainer_device_memory_peak_bytes{device="0",instance="with",namespace="team",pod="with"}'
    process = 'process_resident_memory_bytes{instance="without",namespace="team",pod="without"}'
    answers(tmp_path, target["expr"].replace("$namespace", ".*"), {gpu, process})


def test_an_endpoint_that_was_deleted_counts_with_the_hours_in_which_it_held_devices(tmp_path: Path) -> None:
    """Two devices for an hour of five, and then no series."""
    (target,) = PANELS["Finetune operator: who uses what: Hours of endpoints, by team"]
    query = target["expr"].replace("$namespace", ".*").replace("$profile", ".*").replace("$__range", "5h")
    labels = {"namespace": "team", "profile": "a100", "workload": "endpoint"}
    given = [
        series("finetune_devices", labels | {"state": state}) | {"values": f"_x59 {devices}x59 stale"}
        for state, devices in (("starting", 0), ("running", 2), ("waiting", 4))
    ]
    check = {"expr": query, "eval_time": "5h", "exp_samples": [{"labels": '{namespace="team"}', "value": 2}]}
    file = tmp_path / "case.yaml"
    case = {"interval": "1m", "input_series": given, "promql_expr_test": [check]}
    file.write_text(yaml.safe_dump({"tests": [case]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def served(without: str) -> Iterator[dict[str, str]]:
    """Series of a server of a revision that gives 10 answers per minute, without those of this code."""
    metrics = RequestMetrics(CollectorRegistry())
    metrics.begin_requests("routing")
    for sample in (sample for family in metrics.registry.collect() for sample in family.samples):
        grows = sample.labels.get("code", "200") == "200"
        if sample.labels.get("code") != without:
            labels = sample.labels | {"namespace": "team", "revision": "desk-2"}
            yield series(sample.name, labels) | {"values": "0+10x10" if grows else "0x10"}


@pytest.mark.parametrize("without", ["", "499"], ids=["new server", "server without the series"])
def test_the_queries_of_the_rollout_example_have_a_value_before_a_client_gives_up(
    tmp_path: Path, without: str
) -> None:
    example = yaml.safe_load((ROOT / "examples" / "rollouts" / "prometheus.yaml").read_text())
    queries = example["spec"]["strategy"]["analysis"]["prometheus"]["queries"]
    filled = {"namespace": "team", "revision": "desk-2", "interval": "5m"}
    checks = [
        {
            "expr": re.sub(r"{{ (\w+) }}", lambda found: filled[found[1]], f"({each['query']}) >= bool 0"),
            "eval_time": "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for each in queries
    ]
    case = {"interval": "1m", "input_series": [*served(without)], "promql_expr_test": checks}
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"tests": [case]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
