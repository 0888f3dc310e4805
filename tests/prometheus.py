# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus that scrapes servers on this machine once per second, or has recorded series.

Its targets are static, with the labels that service discovery would add. So these tests cover neither service
discovery nor the chart's monitors and docs/prometheus.yaml: tests/unit/test_monitors.py compares their
selectors and labels with the pods of the operator.
"""

import math
import ssl
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.waiting import eventually
from tools.bootstrap.prometheus import program
from tools.cluster.layout import free_port

ROOT = Path(__file__).parents[1]
RULES = sorted((ROOT / "charts" / "finetune-operator" / "alerts").glob("*.rules.yaml"))

Series = dict[str, str]


def backfill(folder: Path, openmetrics: str) -> None:
    """Put series in the OpenMetrics format, with the time of each sample, into the data of a Prometheus."""
    file = folder / "series.txt"
    file.write_text(f"{openmetrics}\n")
    command = ("tsdb", "create-blocks-from", "openmetrics", str(file), str(folder / "data"))
    subprocess.run([_installed("promtool"), *command], check=True, capture_output=True)


def _installed(name: str) -> Path:
    binary = program(name)
    assert binary is not None, "Prometheus is not installed: run `make prometheus`"
    return binary


@dataclass(frozen=True)
class Target:
    """A scrape target with the labels that service discovery would add."""

    port: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Prometheus:
    """One Prometheus process with our rules.

    Args:
        folder: folder for its configuration and data.
        targets: targets by scrape job.
        scraped: more scrape configurations, such as those of docs/prometheus.yaml.
        host: address to listen on.
        web: its web configuration, with TLS and basic authentication; None: neither.
        ca_pem: certificate of the authority of its certificate.
        auth: a user name and its password.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Target],
        *,
        scraped: Sequence[Mapping[str, Any]] = (),
        host: str = "127.0.0.1",
        web: Mapping[str, Any] | None = None,
        ca_pem: str | None = None,
        auth: tuple[str, str] | None = None,
    ) -> None:
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(file) for file in RULES],
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": True,
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{target.port}"], "labels": dict(target.labels)}
                    ],
                }
                for job, target in targets.items()
            ]
            + [dict(each) for each in scraped],
        }
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration))
        web_file = folder / "web.yaml"
        web_file.write_text(yaml.safe_dump(dict(web or {})))
        scheme, port = "https" if web else "http", free_port()
        self.address = f"{scheme}://{host}:{port}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    _installed("prometheus"),
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={host}:{port}",
                    f"--web.config.file={web_file}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        trusted = ssl.create_default_context(cadata=ca_pem)
        self._http = httpx.Client(
            base_url=f"{self.address}/api/v1", trust_env=False, timeout=30, verify=trusted, auth=auth
        )
        eventually("Prometheus answers", self._answers, describe=self._log.read_text)

    def close(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def query(self, expression: str) -> list[tuple[Series, float]]:
        """Labels and value of each series of the result.

        Raises:
            AssertionError: the expression is not valid PromQL.
        """
        data = self._get("query", query=expression)
        return [(series["metric"], float(series["value"][1])) for series in data["result"]]

    def has_data(self, expression: str) -> bool:
        """Whether the result has a series whose value is a number."""
        return any(not math.isnan(value) for _, value in self.query(expression))

    def label_values(self, metric: str, label: str) -> list[str]:
        """Result of Grafana's `label_values(metric, label)`."""
        values: list[str] = self._get(f"label/{label}/values", **{"match[]": metric})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """All rules with their state."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def _answers(self) -> bool:
        try:
            return self._http.get("query", params={"query": "1"}).is_success
        except httpx.TransportError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(path, params=parameters)
        assert answer.is_success, f"{parameters}: {answer.text}"
        return answer.json()["data"]
