# SPDX-License-Identifier: Apache-2.0
"""Generate docs/metrics.md: every metric with type, labels and meaning, the queries and the alerts."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml
from prometheus_client.metrics import MetricWrapperBase

from finetune_operator.api.crd import KINDS
from finetune_operator.api.stage_status import LOST_CAUSES
from finetune_operator.metrics.device_gauges import DeviceCollector
from finetune_operator.metrics.object_gauges import MAX_SERIES_PER_KIND, ObjectStateCollector
from finetune_operator.metrics.process_metrics import OperatorMetrics, ProcessStateCollector
from finetune_operator.reconcile.inputs.device_use import Calibration
from finetune_trainer.contract.environment import METRICS_PORT, SERVE_PORT
from finetune_trainer.serve.serving_metrics import ServingMetrics
from finetune_trainer.train.training_metrics import TrainingMetrics
from tools.bootstrap.uv import ROOT

QUERIES: Final = ROOT / "docs" / "queries.yaml"
RULES: Final = ROOT / "charts" / "finetune-operator" / "alerts" / "finetune-operator.rules.yaml"
RECORDING: Final = RULES.with_name("recording.rules.yaml")
TEMPLATE: Final = Path(__file__).parent / "metrics_page.md"


class Family(NamedTuple):
    """A metric family."""

    name: str
    type: str
    labels: tuple[str, ...]
    meaning: str


def families() -> dict[str, tuple[Family, ...]]:
    """All metrics of the project, by process: operator, serving, training."""
    return {
        "operator": (*_wrapped(OperatorMetrics()), *_computed()),
        "serving": tuple(_wrapped(ServingMetrics())),
        "training": tuple(_wrapped(TrainingMetrics())),
    }


def recorded() -> tuple[Family, ...]:
    """The series of the recording rules; the meaning of each is the comment above its rule."""
    rules = re.findall(r"# (.+)\n +- record: (\S+)\n +expr: >-\n((?: {10}.+\n)+)", RECORDING.read_text())
    return tuple(
        Family(name, "gauge", _kept(name, expression), meaning) for meaning, name, expression in rules
    )


def _kept(record: str, expression: str) -> tuple[str, ...]:
    """Labels that the outer aggregation of a rule keeps."""
    (labels,) = re.findall(r"by \(([^)]*)\)", expression)[:1]
    kept = labels.split(", ")
    return tuple(label for label in kept if label != "le" or "_bucket:" in record)


def metrics_page() -> str:
    """The whole page as Markdown."""
    parts = {
        **{origin: _table(metrics) for origin, metrics in families().items()},
        "recorded": _table(recorded()),
        "queries": "\n".join(_queries()),
        "alerts": "\n".join(_alerts()),
        "namespace_series": str(_namespace_series()),
        "profile_series": str(_profile_series()),
        "lost_causes": "\n".join(f"- `{cause}`: {meaning}" for cause, meaning in LOST_CAUSES.items()),
        "series_limit": f"{MAX_SERIES_PER_KIND:,}",
        "serve_port": str(SERVE_PORT),
        "metrics_port": str(METRICS_PORT),
    }
    page = TEMPLATE.read_text()
    for name, text in parts.items():
        page = page.replace(f"<<{name}>>", text)
    return page


def _namespace_series() -> int:
    """Number of series that start with the first object of a namespace."""
    metrics = OperatorMetrics()
    metrics.begin_namespace("team")
    families = metrics.registry.collect()
    return sum(sample.labels.get("namespace") == "team" for family in families for sample in family.samples)


def _profile_series() -> int:
    """Number of series that start with the first object of a namespace that uses a ComputeProfile."""
    metrics = OperatorMetrics()
    metrics.begin_profile("team", "a100")
    labels = [sample.labels for family in metrics.registry.collect() for sample in family.samples]
    return sum({"namespace", "profile"} <= each.keys() for each in labels)


def _wrapped(metrics: object) -> Iterator[Family]:
    """Families of the metrics that are attributes of an object."""
    for value in vars(metrics).values():
        for metric in value.values() if isinstance(value, dict) else (value,):
            if isinstance(metric, MetricWrapperBase):
                for family in metric.describe():
                    yield Family(family.name, family.type, metric._labelnames, family.documentation)


def _computed() -> Iterator[Family]:
    kinds: dict[str, list[Any]] = {kind.name: [] for kind in KINDS}
    objects = ObjectStateCollector(kinds, lambda: True, lambda _namespace, _name: (), lambda _: None)
    devices = DeviceCollector(defaultdict(list), lambda: True, Calibration())
    process = ProcessStateCollector(
        depth=lambda: 0, ages=dict, active=lambda: True, lease_transitions=lambda: 0, report_up=lambda: True
    )
    for family in (*objects.collect(), *devices.collect(), *process.collect()):
        labels = family._labelnames  # type: ignore[attr-defined]  # private in the library
        yield Family(family.name, family.type, labels, family.documentation)


def _table(families: Iterable[Family]) -> str:
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for family in sorted(set(families)):  # a metric may be an attribute twice
        labels = ", ".join(f"`{label}`" for label in family.labels)
        name = family.name + ("_total" if family.type == "counter" else "")
        meaning = family.meaning.rstrip(".").replace("|", "&#124;")
        rows.append(f"| `{name}` | {family.type} | {labels} | {meaning} |")
    return "\n".join(rows)


def _queries() -> Iterator[str]:
    for section, entries in yaml.safe_load(QUERIES.read_text()).items():
        yield f"### {section}\n\n```promql"
        for entry in entries:
            note = " (nodes with a GPU)" if entry.get("gpu") else ""
            yield f"# {entry['question']}{note}\n{entry['query']}"
        yield "```\n"


def _alerts() -> Iterator[str]:
    yield "| alert | severity | fires when |\n|---|---|---|"
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            held = f", for {rule['for']}" if "for" in rule else ""
            expression = " ".join(rule["expr"].split()).replace("|", "\\|")
            yield f"| [{name}](runbooks/{name}.md) | {rule['labels']['severity']} | `{expression}`{held} |"
