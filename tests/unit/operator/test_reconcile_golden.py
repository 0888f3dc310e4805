"""Golden tests: objects of `tests/golden/input/CASE.yaml` in, plan of `tests/golden/output/CASE.yaml` out.

The first document of an input says when it is and which object is looked at; the others are what is there.
`UPDATE_GOLDEN=1 pytest tests/unit/operator/test_reconcile_golden.py` writes the outputs anew, for review.
"""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plan import Plan
from finetune_operator.reconcile.snapshot import OperatorFacts, RunProgress
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.objects import ReportTarget
from finetune_trainer.contract.progress import Progress
from tests.unit.operator.memorycluster import FACTS, MemoryCluster

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = sorted(path.name for path in (GOLDEN / "input").glob("*.yaml"))


def as_yaml(plan: Plan) -> str:
    """The plan as a person reviews it."""
    document: dict[str, Any] = {
        "create": [{"same": create.same, "manifest": create.manifest} for create in plan.create],
        "apply": [apply.manifest for apply in plan.apply],
        "delete": [
            {
                "object": f"{delete.manifest['kind']}/{delete.manifest['metadata']['name']}",
                "propagation": delete.propagation,
            }
            for delete in plan.delete
        ],
        "status": plan.status,
        "events": [f"{event.type} {event.reason!s}: {event.message}" for event in plan.events],
        "metadata": plan.metadata,
        "requeueAfter": plan.requeue_after,
    }
    kept = {key: _plain(value) for key, value in document.items() if value not in ([], None)}
    return yaml.safe_dump(kept, sort_keys=False, width=110, allow_unicode=True)


def _plain(node: Any) -> Any:
    if isinstance(node, dict) and node.get("name") == CONFIG_ENV:
        return {"name": CONFIG_ENV, "value (JSON)": json.loads(node["value"])}
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return str(node) if isinstance(node, str) else node


def planned(path: Path) -> Plan:
    head, *objects = yaml.safe_load_all(path.read_text())
    facts = FACTS
    if "report" in head:
        facts = OperatorFacts(FACTS.namespace, FACTS.trainer_image, report=ReportTarget(**head["report"]))
    cluster = MemoryCluster(*map(_with_text_times, objects), facts=facts)
    cluster.now = _moment(head["now"])
    if "progress" in head:
        cluster.progress = RunProgress(head["progress"].pop("stage"), Progress(**head["progress"]))
    kind, name = head["look"].split("/")
    return cluster.plan(kind, name)


def _moment(value: datetime | str) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _with_text_times(node: Any) -> Any:
    """YAML reads bare timestamps as such; the API server's JSON has them as text."""
    if isinstance(node, dict):
        return {key: _with_text_times(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_text_times(value) for value in node]
    return node.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(node, datetime) else node


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_the_reviewed_one(case: str) -> None:
    actual = as_yaml(planned(GOLDEN / "input" / case))
    reviewed = GOLDEN / "output" / case
    if os.environ.get("UPDATE_GOLDEN"):
        reviewed.write_text(actual)
    assert reviewed.exists(), "run once with UPDATE_GOLDEN=1 and review the file"
    assert actual == reviewed.read_text()


def test_every_reviewed_plan_belongs_to_a_case() -> None:
    assert sorted(path.name for path in (GOLDEN / "output").glob("*.yaml")) == CASES
