# SPDX-License-Identifier: Apache-2.0
"""The chart's monitors and docs/prometheus.yaml scrape the pods that the operator builds."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.chartvalues import documented_values
from tests.unit.operator.goldencases import GOLDEN, reviewed
from tests.unit.test_alerts import RECORDING_FILE, RULES_FILE, promtool
from tests.unit.test_chart_templates import Manifest, named, rendered

ROOT = Path(__file__).parents[2]
SCRAPES = ROOT / "docs" / "prometheus.yaml"
DASHBOARDS = sorted((ROOT / "charts" / "finetune-operator" / "dashboards").glob("*.json"))

OPERATOR = "finetune-operator"
EXPECTED = {
    "finetune-operator": {("operator", "http", 8080)},
    "finetune-training": {("train", "metrics", 9090)},
    "finetune-serving": {("serve", "http", 8000), ("serve", "metrics", 9090)},
}
"""Ports that each job scrapes: stage, name, number."""


@pytest.fixture(scope="module")
def chart() -> list[Manifest]:
    return rendered("monitors.enabled=true", "monitors.labels.release=main", "alerts.enabled=true")


def pod_templates(chart: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every kind of pod: the operator's own, and those of its golden files, by stage."""
    yield "operator", named(chart, "Deployment")["spec"]["template"]
    for path in sorted((GOLDEN / "output").iterdir()):
        for create in reviewed(path).get("create", ()):
            manifest = create["manifest"]
            if manifest["kind"] in {"Job", "Deployment"}:
                template = manifest["spec"]["template"]
                yield template["metadata"]["labels"].get("finetune.dev/stage", "serve"), template


def ports(template: Manifest) -> Iterator[tuple[str, int]]:
    for container in template["spec"]["containers"]:
        for port in container.get("ports", ()):
            yield port["name"], port["containerPort"]


def is_selected(labels: dict[str, str], selector: Manifest) -> bool:
    expressions = selector.get("matchExpressions", ())
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        rule["key"] in labels and labels[rule["key"]] in rule.get("values", [labels[rule["key"]]])
        for rule in expressions
    )


def discovered(template: Manifest, port: str) -> dict[str, str]:
    """Labels of Prometheus' own service discovery for a port of a pod."""
    found = {"__meta_kubernetes_pod_container_port_name": port}
    for key, value in template["metadata"]["labels"].items():
        name = re.sub(r"[^a-zA-Z0-9_]", "_", key)
        found[f"__meta_kubernetes_pod_label_{name}"] = value
        found[f"__meta_kubernetes_pod_labelpresent_{name}"] = "true"
    return found


def is_kept(labels: dict[str, str], relabelings: list[Manifest]) -> bool:
    return all(
        (rule["action"] == "keep")
        == bool(re.fullmatch(rule["regex"], ";".join(labels.get(name, "") for name in rule["source_labels"])))
        for rule in relabelings
        if rule.get("action") in {"keep", "drop"}
    )


def test_the_monitors_select_the_pods_that_show_metrics_and_no_others(chart: list[Manifest]) -> None:
    for kind in ("training", "serving"):
        monitor = named(chart, "PodMonitor", f"{OPERATOR}-{kind}")["spec"]
        names = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
        scraped = {
            (stage, *port)
            for stage, template in pod_templates(chart)
            if is_selected(template["metadata"]["labels"], monitor["selector"])
            for port in ports(template)
            if port[0] in names
        }
        assert scraped == EXPECTED[f"finetune-{kind}"]


def test_the_service_monitor_finds_the_metrics_service_and_leaves_labels_as_they_are(
    chart: list[Manifest],
) -> None:
    monitor = named(chart, "ServiceMonitor")["spec"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["honorLabels"] is True
    scraped = [
        (service["metadata"]["name"], port["port"])
        for service in chart
        if service["kind"] == "Service" and is_selected(service["metadata"]["labels"], monitor["selector"])
        for port in service["spec"]["ports"]
        if port["name"] == endpoint["port"]
    ]
    assert scraped == [(f"{OPERATOR}-metrics", 8080)]


def test_the_plain_scrape_configuration_finds_the_same(chart: list[Manifest]) -> None:
    jobs = yaml.safe_load(SCRAPES.read_text())["scrape_configs"]
    assert {job["job_name"] for job in jobs} == set(EXPECTED)
    for job in jobs:
        scraped = {
            (stage, *port)
            for stage, template in pod_templates(chart)
            for port in ports(template)
            if is_kept(discovered(template, port[0]), job["relabel_configs"])
        }
        assert scraped == EXPECTED[job["job_name"]]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_the_plain_scrape_configuration_leaves_out_pods_that_have_ended(
    chart: list[Manifest], phase: str
) -> None:
    for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]:
        for _, template in pod_templates(chart):
            for name, _ in ports(template):
                found = discovered(template, name) | {"__meta_kubernetes_pod_phase": phase}
                assert not is_kept(found, job["relabel_configs"])


def test_a_serving_pod_is_scraped_with_its_endpoint_and_revision(chart: list[Manifest]) -> None:
    expected = {
        "inferencedeployment": "__meta_kubernetes_pod_label_finetune_dev_owner_name",
        "revision": "__meta_kubernetes_pod_label_finetune_dev_revision",
    }
    for endpoint in named(chart, "PodMonitor", f"{OPERATOR}-serving")["spec"]["podMetricsEndpoints"]:
        assert {r["targetLabel"]: r["sourceLabels"][0] for r in endpoint["relabelings"]} == expected
    jobs = {job["job_name"]: job for job in yaml.safe_load(SCRAPES.read_text())["scrape_configs"]}
    relabelings = jobs["finetune-serving"]["relabel_configs"]
    plain = {r["target_label"]: r["source_labels"][0] for r in relabelings if "target_label" in r}
    assert expected.items() <= plain.items()
    templates = [template for stage, template in pod_templates(chart) if stage == "serve"]
    assert templates
    for template in templates:
        assert set(expected.values()) <= set(discovered(template, "http"))


def test_promtool_takes_the_plain_scrape_configuration(tmp_path: Path) -> None:
    """Except for the discovery, which the distribution's build omits."""
    configuration = yaml.safe_load(SCRAPES.read_text())
    for job in configuration["scrape_configs"]:
        assert [discovery["role"] for discovery in job.pop("kubernetes_sd_configs")] == ["pod"]
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    assert configuration["rule_files"] == [RECORDING_FILE.name, RULES_FILE.name]
    for rules in (RECORDING_FILE, RULES_FILE):
        (tmp_path / rules.name).write_text(rules.read_text())
    done = promtool("check", "config", tmp_path / "prometheus.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_the_documented_values_every_monitor_and_rule_has_the_label_that_prometheus_selects() -> None:
    manifests = rendered(*documented_values())
    of_prometheus = [m for m in manifests if m["apiVersion"].startswith("monitoring.coreos.com/")]
    kinds = sorted(manifest["kind"] for manifest in of_prometheus)
    assert kinds == ["PodMonitor", "PodMonitor", "PrometheusRule", "ServiceMonitor"]
    assert all(manifest["metadata"]["labels"].get("release") == "prometheus" for manifest in of_prometheus)


def test_nothing_that_needs_another_operator_is_installed_unasked() -> None:
    assert not any(m["apiVersion"].startswith("monitoring.coreos.com/") for m in rendered())


def test_monitors_watch_the_namespaces_that_the_operator_watches() -> None:
    monitor = named(
        rendered("monitors.enabled=true", "watchNamespaces={a,b}"), "PodMonitor", f"{OPERATOR}-training"
    )
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_the_rules_in_the_cluster_are_those_of_the_file_with_runbooks_where_people_find_them() -> None:
    (rule,) = [
        m
        for m in rendered("alerts.enabled=true", "alerts.runbooks=https://wiki.example/finetune/")
        if m["kind"] == "PrometheusRule"
    ]
    recorded, alerts = (
        yaml.safe_load(
            file.read_text().replace("docs/runbooks/FineTune", "https://wiki.example/finetune/FineTune")
        )["groups"]
        for file in (RECORDING_FILE, RULES_FILE)
    )
    assert rule["spec"] == {"groups": [*recorded, *alerts]}


def test_the_dashboards_are_for_the_sidecar_as_they_are_in_the_files() -> None:
    found = named(rendered("dashboard.enabled=true"), "ConfigMap", f"{OPERATOR}-dashboard")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    shipped = {name: json.loads(text) for name, text in found["data"].items()}
    assert shipped == {file.name: json.loads(file.read_text()) for file in DASHBOARDS}


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_a_dashboard_is_laid_out_without_overlap_and_asks_the_chosen_data_source(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    assert dashboard["schemaVersion"] >= 39
    source, *variables = [each["name"] for each in dashboard["templating"]["list"]]
    assert source == "datasource"
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            asked = set(re.findall(r"\$(\w+)", target["expr"]))
            assert asked <= {*variables, "__rate_interval", "__range"}
