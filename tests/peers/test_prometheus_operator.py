# SPDX-License-Identifier: Apache-2.0
"""The real Prometheus Operator accepts the chart's monitors and rules, and generates jobs and rule files."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
import yaml

from tests.chartvalues import documented_values
from tests.peers.prometheusoperator import Generated, kept, prometheus_operator
from tests.prometheus import RULES
from tests.unit.test_chart_templates import rendered
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.toolchain import HELM, ensure
from tools.demo.install import SYSTEM

OPERATOR: Final = f"serviceMonitor/{SYSTEM}/finetune-operator/0"
TRAINING: Final = f"podMonitor/{SYSTEM}/finetune-operator-training/0"
SERVING: Final = tuple(f"podMonitor/{SYSTEM}/finetune-operator-serving/{index}" for index in range(2))
JOBS: Final = {OPERATOR, TRAINING, *SERVING}


@dataclass(frozen=True)
class Site:
    """A control plane with the Prometheus Operator."""

    plane: ControlPlane
    generated: Generated

    def apply(self, *values: str) -> None:
        """Apply the chart's objects for Prometheus; the API server refuses fields that are not defined."""
        group = "monitoring.coreos.com/"
        items = [each for each in rendered(*values) if each["apiVersion"].startswith(group)]
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        command = ("apply", "--server-side", "--validate=strict", "--filename=-")
        self.plane.kubectl.run(*command, text=text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ensure((HELM,))
    plane = ControlPlane(f"monitors-{os.getpid()}")
    with plane, prometheus_operator(plane, tmp_path_factory.mktemp("operator")) as generated:
        plane.kubectl.run("create", "namespace", SYSTEM)
        yield Site(plane, generated)
    plane.purge()


def test_with_the_documented_values_each_monitor_is_a_job_and_the_rules_are_loaded(site: Site) -> None:
    site.apply(*documented_values())
    jobs = site.generated.until_jobs(JOBS)
    assert jobs[OPERATOR]["honor_labels"] is True
    assert "scheme" not in jobs[OPERATOR] or jobs[OPERATOR]["scheme"] == "http"
    assert [each["namespaces"] for each in jobs[OPERATOR]["kubernetes_sd_configs"]] == [{"names": [SYSTEM]}]
    for name in (TRAINING, *SERVING):
        assert [each["role"] for each in jobs[name]["kubernetes_sd_configs"]] == ["pod"]
        assert "namespaces" not in jobs[name]["kubernetes_sd_configs"][0], "it discovers all namespaces"
        assert not jobs[name].get("honor_labels")
    groups = [group for file in RULES for group in yaml.safe_load(file.read_text())["groups"]]

    def loaded() -> list[str]:
        files = site.generated.rules().values()
        return sorted(group["name"] for text in files for group in yaml.safe_load(text)["groups"])

    eventually("the rules are loaded", lambda: loaded() == sorted(g["name"] for g in groups), 90, loaded)


def test_protected_metrics_are_scraped_with_tls_and_the_token_of_prometheus(site: Site) -> None:
    site.apply(*documented_values(), "metrics.secure=true")

    def secure() -> bool:
        job = site.generated.jobs()[OPERATOR]
        return job.get("scheme") == "https"

    eventually("the job is protected", secure, 90, site.generated.jobs)
    job = site.generated.jobs()[OPERATOR]
    assert job["tls_config"] == {"insecure_skip_verify": True}
    credentials = job.get("authorization", {}).get("credentials_file", job.get("bearer_token_file"))
    assert credentials == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert any(value == "metrics" for _, value in kept(job))


def test_pods_are_discovered_only_in_the_namespaces_that_the_operator_watches(site: Site) -> None:
    site.apply(*documented_values(), "watchNamespaces={support,search}")

    def namespaces() -> list[object]:
        jobs = site.generated.jobs()
        return [jobs[name]["kubernetes_sd_configs"][0].get("namespaces") for name in (TRAINING, *SERVING)]

    eventually(
        "the namespaces", lambda: namespaces() == [{"names": ["support", "search"]}] * 3, 90, namespaces
    )


def test_monitors_without_the_label_that_prometheus_selects_make_no_job(site: Site) -> None:
    values = [each for each in documented_values() if not each.startswith("monitors.labels")]
    site.apply(*values)
    site.generated.until_jobs(set())
