"""A real Prometheus that scrapes servers on this machine once per second.

Its targets are static, with the labels that service discovery would add. So these tests cover neither service
discovery nor the chart's monitors and docs/prometheus.yaml: tests/unit/test_monitors.py compares their
selectors and labels with the pods of the operator.
"""

import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.waiting import eventually
from tools.bootstrap.prometheus import program
from tools.cluster.ports import free_port

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "charts" / "finetune-operator" / "alerts").glob("*.rules.yaml"))

Series = dict[str, str]


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
    """

    def __init__(self, folder: Path, targets: Mapping[str, Target]) -> None:
        binary = program("prometheus")
        assert binary is not None, "Prometheus is not installed: run `make prometheus`"
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
            ],
        }
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(configuration))
        port = free_port()
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={file}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False, timeout=30)
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
