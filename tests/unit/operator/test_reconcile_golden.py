# SPDX-License-Identifier: Apache-2.0
"""Golden tests: objects of `tests/golden/input/CASE.yaml` in, plan of `tests/golden/output/CASE.yaml` out.

`UPDATE_GOLDEN=1 pytest tests/unit/operator/test_reconcile_golden.py` writes the outputs anew, for review.
"""

import json
import os
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.plan import Plan
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.references import ReportTarget
from finetune_trainer.contract.results import Progress
from tests.unit.operator.goldencases import CASES, GOLDEN, Case, base_objects, load
from tests.unit.operator.memorycluster import FACTS, MemoryCluster


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


def planned(case: Case) -> Plan:
    facts = FACTS
    if case.report:
        facts = replace(FACTS, report=ReportTarget(**case.report))
    cluster = MemoryCluster(*case.objects, facts=facts)
    cluster.now = datetime.fromisoformat(case.now)
    if case.progress:
        progress = dict(case.progress)
        cluster.report(progress.pop("stage"), Progress(**progress))
    kind, name = case.reconcile.split("/")
    return cluster.plan(kind, name)


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_the_reviewed_one(case: str) -> None:
    given, reviewed = (GOLDEN / folder / f"{case}.yaml" for folder in ("input", "output"))
    actual = as_yaml(planned(load(given)))
    if os.environ.get("UPDATE_GOLDEN"):
        reviewed.write_text(actual)
    assert reviewed.exists(), f"{reviewed} is missing: run `make golden` and review it"
    assert actual == reviewed.read_text(), f"{case}: the plan for {given} is not that of {reviewed}"


def test_every_reviewed_plan_belongs_to_a_case() -> None:
    assert sorted(path.stem for path in (GOLDEN / "output").glob("*.yaml")) == CASES


def test_every_base_object_is_in_more_than_one_case() -> None:
    cases = [load(GOLDEN / "input" / f"{case}.yaml") for case in CASES]
    uses = Counter((file, name) for case in cases for file, names in case.given.items() for name in names)
    bases = {(file.stem, name) for file in (GOLDEN / "base").iterdir() for name in base_objects(file)}
    assert {each for each in bases if uses[each] < 2} == set()


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ("{kind: Pod, metadata: {name: other}}", "Pod/other is no base object of this case"),
        ("{apiVersion: v1, kind: Pod, metadata: {name: one}}", "Pod/one is a base object"),
    ],
)
def test_a_patch_without_a_base_object_and_an_object_in_place_of_one_are_refused(
    tmp_path: Path, document: str, complaint: str
) -> None:
    (tmp_path / "run.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: one}}")
    case = tmp_path / "case.yaml"
    case.write_text(f"{{now: now, reconcile: Pod/one, given: {{run: [Pod/one]}}}}\n---\n{document}\n")
    with pytest.raises(ValueError, match=complaint):
        load(case, tmp_path)


def test_a_base_object_that_does_not_exist_is_refused_by_file_and_name(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: one}}")
    case = tmp_path / "case.yaml"
    case.write_text("{now: now, reconcile: Pod/one, given: {run: [Pod/two]}}")
    with pytest.raises(ValueError, match=r"case\.yaml: run\.yaml has no Pod/two"):
        load(case, tmp_path)
