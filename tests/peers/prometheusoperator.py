# SPDX-License-Identifier: Apache-2.0
"""The real Prometheus Operator as a process, and what it generates for a Prometheus."""

import base64
import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.layout import LOOPBACK, free_port
from tools.cluster.processes import WITH_PARENT
from tools.peers.toolchain import PROMETHEUS_DEFINITIONS, PROMETHEUS_OPERATOR

Object = dict[str, Any]

NAMESPACE: Final = "monitoring"
"""Namespace of Prometheus, as in docs/metrics.md and in the chart's values."""
NAME: Final = "prometheus"
"""Name of the Prometheus object and of its service account."""
SELECTED: Final = {"matchLabels": {"release": "prometheus"}}
"""The label of docs/metrics.md, which the Helm chart kube-prometheus-stack selects by default."""
WAIT_SECONDS: Final = 60


@contextmanager
def prometheus_operator(plane: ControlPlane, folder: Path) -> Iterator["Generated"]:
    """Define the kinds of the Prometheus Operator, create a Prometheus, and run the operator.

    Args:
        plane: the control plane, or the cluster with a node.
        folder: a folder for its log.
    """
    plane.kubectl.define(PROMETHEUS_DEFINITIONS)
    plane.kubectl.run("create", "namespace", NAMESPACE)
    plane.kubectl.run("create", "serviceaccount", NAME, f"--namespace={NAMESPACE}")
    plane.kubectl.run("create", "--filename=-", text=json.dumps(_prometheus()))
    address, log = f"{LOOPBACK}:{free_port()}", folder / "prometheus-operator.log"
    command = (
        *WITH_PARENT,
        str(PROMETHEUS_OPERATOR.program("operator")),
        f"--web.listen-address={address}",
    )
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(plane.client("prometheus-operator"))}
    with (
        log.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            eventually("the operator is healthy", lambda: _is_up(address), WAIT_SECONDS, log.read_text)
            yield Generated(plane, log)
        finally:
            process.terminate()


class Generated:
    """What the Prometheus Operator generates for the pods of the Prometheus.

    Args:
        plane: the control plane.
        log: file with the operator's log.
    """

    def __init__(self, plane: ControlPlane, log: Path) -> None:
        self._plane = plane
        self._log = log

    def configuration(self) -> Object:
        """Content of the configuration file; empty before there is one."""
        secrets = self._all("secrets")
        packed = secrets.get(f"prometheus-{NAME}", {}).get("data", {}).get("prometheus.yaml.gz", "")
        text = gzip.decompress(base64.b64decode(packed)) if packed else b""
        return yaml.safe_load(text) or {}

    def jobs(self) -> dict[str, Object]:
        """Scrape jobs by name."""
        return {job["job_name"]: job for job in self.configuration().get("scrape_configs") or ()}

    def rules(self) -> dict[str, str]:
        """Files with rules by name."""
        maps = self._all("configmaps")
        prefix = f"prometheus-{NAME}-rulefiles-"
        return {
            file: text
            for name, made in maps.items()
            if name.startswith(prefix)
            for file, text in made.get("data", {}).items()
        }

    def until_jobs(self, expected: set[str]) -> dict[str, Object]:
        """Wait until there are exactly these scrape jobs, and return them."""
        eventually(
            f"the jobs are {', '.join(sorted(expected))}",
            lambda: set(self.jobs()) == expected,
            WAIT_SECONDS,
            lambda: f"{sorted(self.jobs())}\n{self._log.read_text()[-4000:]}",
        )
        return self.jobs()

    def _all(self, kind: str) -> dict[str, Object]:
        found = self._plane.kubectl.get(kind, f"--namespace={NAMESPACE}")["items"]
        return {each["metadata"]["name"]: each for each in found}


def kept(job: Object) -> set[tuple[str, str]]:
    """What a generated job keeps: names of the discovery's labels, and the values, of each keep action."""
    return {
        (";".join(rule["source_labels"]), re.sub(r"\\", "", rule["regex"]))
        for rule in job["relabel_configs"]
        if rule.get("action") == "keep"
    }


def _prometheus() -> Object:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "Prometheus",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {
            # The test runs the process.
            "replicas": 0,
            "serviceAccountName": NAME,
            "evaluationInterval": "1s",
            "serviceMonitorSelector": SELECTED,
            "serviceMonitorNamespaceSelector": {},
            "podMonitorSelector": SELECTED,
            "podMonitorNamespaceSelector": {},
            "ruleSelector": SELECTED,
            "ruleNamespaceSelector": {},
        },
    }


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
