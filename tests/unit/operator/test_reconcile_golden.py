# SPDX-License-Identifier: Apache-2.0
"""Golden tests: objects of `tests/golden/input/CASE.yaml` in, plan of `tests/golden/output/CASE.yaml` out.

`UPDATE_GOLDEN=1 pytest tests/unit/operator/test_reconcile_golden.py` writes the outputs anew, for review.
An output with `base: OTHER` is a patch of the plan of that case.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
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
from tests.mergepatch import difference, merged
from tests.unit.operator.goldencases import CASES, GOLDEN, Case, base_objects, base_of, load, reviewed
from tests.unit.operator.memorycluster import FACTS, MemoryCluster

MAX_LINE_LENGTH = 80
"""Length of a value that a patch has in one line, without its indentation."""
ADDED = "{apiVersion: v1, kind: Secret, metadata: {name: added, namespace: team}}"


def as_document(plan: Plan) -> dict[str, Any]:
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
    return {key: _plain(value) for key, value in document.items() if value not in ([], None)}


class _PatchDumper(yaml.SafeDumper):
    """Writes mappings and lists of a few short values in one line."""

    def represent_mapping(self, *args: Any, **options: Any) -> yaml.MappingNode:
        node = super().represent_mapping(*args, **options)
        node.flow_style = self._fits([each for pair in node.value for each in pair])
        return node

    def represent_sequence(self, *args: Any, **options: Any) -> yaml.SequenceNode:
        node = super().represent_sequence(*args, **options)
        node.flow_style = self._fits(node.value)
        return node

    @staticmethod
    def _fits(nodes: list[yaml.Node]) -> bool:
        are_scalars = all(isinstance(node, yaml.ScalarNode) for node in nodes)
        return are_scalars and sum(len(node.value) + 2 for node in nodes) < MAX_LINE_LENGTH


def as_text(
    document: dict[str, Any], *, sort_keys: bool = False, dumper: type[yaml.SafeDumper] = yaml.SafeDumper
) -> str:
    return yaml.dump(document, Dumper=dumper, sort_keys=sort_keys, width=110, allow_unicode=True)


def as_patch(base: str, of: dict[str, Any], document: dict[str, Any]) -> str:
    """A plan as a patch of that of the case `base`, which is `of`."""
    return as_text({"base": base, **difference(of, document)}, dumper=_PatchDumper)


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
    given, path = (GOLDEN / folder / f"{case}.yaml" for folder in ("input", "output"))
    actual = as_document(planned(load(given)))
    base = base_of(path)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(as_text(actual) if base is None else as_patch(base, _plan_of(base), actual))
    assert path.exists(), f"{path} is missing: run `make golden` and review it"
    complaint = f"{case}: the plan for {given} is not that of {path}"
    if base is None:
        assert as_text(actual) == path.read_text(), complaint
    elif not os.environ.get("UPDATE_GOLDEN"):  # the base may be written after its dependants
        assert as_text(actual, sort_keys=True) == as_text(reviewed(path), sort_keys=True), complaint
        assert as_patch(base, reviewed(path.with_stem(base)), actual) == path.read_text(), complaint


def _plan_of(case: str) -> dict[str, Any]:
    return as_document(planned(load(GOLDEN / "input" / f"{case}.yaml")))


@pytest.mark.parametrize("case", [case for case in CASES if base_of(GOLDEN / "output" / f"{case}.yaml")])
def test_a_base_that_changes_changes_the_plan_of_its_dependants(case: str, tmp_path: Path) -> None:
    path = GOLDEN / "output" / f"{case}.yaml"
    base = path.with_stem(str(base_of(path)))
    (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / base.name).write_text(base.read_text())
    assert reviewed(tmp_path / path.name) == reviewed(path)
    (tmp_path / base.name).write_text(as_text(merged(reviewed(base), {"added": 1})))
    assert reviewed(tmp_path / path.name) == merged(reviewed(path), {"added": 1})


@pytest.mark.parametrize("case", [case for case in CASES if base_of(GOLDEN / "input" / f"{case}.yaml")])
def test_a_base_that_changes_changes_the_input_of_its_dependants(case: str, tmp_path: Path) -> None:
    path = GOLDEN / "input" / f"{case}.yaml"
    base = path.with_stem(str(base_of(path)))
    (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / base.name).write_text(f"{base.read_text()}---\n{ADDED}")
    added = yaml.safe_load(ADDED)
    objects = load(tmp_path / path.name).objects
    assert added in objects
    assert tuple(each for each in objects if each != added) == load(path).objects


@pytest.mark.parametrize("read", [load, reviewed])
def test_a_base_that_has_a_base_is_refused(read: Callable[[Path], object], tmp_path: Path) -> None:
    for name, base in (("one", "two"), ("two", "three"), ("three", None)):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}" if base else "given: {}")
    with pytest.raises(ValueError, match=r"one\.yaml: its base two has a base"):
        read(tmp_path / "one.yaml")


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
