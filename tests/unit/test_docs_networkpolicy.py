# SPDX-License-Identifier: Apache-2.0
"""The NetworkPolicy of docs/tenants.md permits what pods need, and nothing to pods with code of users."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.labels import ANALYZED
from finetune_operator.stage_table import STAGES, find_row
from finetune_trainer.contract.environment import METRICS_PORT, SERVE_PORT
from tests.unit.operator.goldencases import GOLDEN, reviewed
from tests.unit.test_chart_templates import rendered

ROOT = Path(__file__).parents[2]
STAGE = "finetune.dev/stage"
Labels = dict[str, str]


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    page = (ROOT / "docs" / "tenants.md").read_text()
    (text,) = re.findall(r"<!-- read by .* -->\n```yaml\n(.*?)```", page, re.DOTALL)
    spec: dict[str, Any] = yaml.safe_load(text)["spec"]
    return spec


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for each in selector.get("matchExpressions", ()):
        if each["operator"] == "Exists":
            if each["key"] not in labels:
                return False
        else:
            assert each["operator"] == "NotIn"
            if labels.get(each["key"]) in each["values"]:
                return False
    return True


def pod_labels() -> Iterator[Labels]:
    """Labels of all pods in the expected plans."""
    for file in sorted((GOLDEN / "output").glob("*.yaml")):
        for created in reviewed(file).get("create") or ():
            manifest = created.get("manifest", created)
            if manifest.get("kind") in {"Job", "Deployment"}:
                yield manifest["spec"]["template"]["metadata"]["labels"]


def test_it_selects_all_pods_except_those_with_code_of_users(policy: dict[str, Any]) -> None:
    found = list(pod_labels())
    assert {"prepare", "preflight", "train", "evaluate"} <= {labels.get(STAGE) for labels in found}
    assert any(STAGE not in labels for labels in found), "no pod of an endpoint"
    for labels in found:
        row = find_row(labels.get(STAGE))
        assert selects(policy["podSelector"], labels) == (row is None or not row.isolated), labels


def test_its_stage_without_connections_is_the_isolated_one(policy: dict[str, Any]) -> None:
    (expression,) = policy["podSelector"]["matchExpressions"]
    assert expression["key"] == STAGE
    assert expression["values"] == [stage for stage, row in STAGES.items() if row.isolated]


def test_it_admits_reports_to_the_operator_and_its_monitoring(policy: dict[str, Any]) -> None:
    (deployment,) = (each for each in rendered() if each["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
    (reports,) = (
        rule
        for rule in policy["egress"]
        if rule.get("ports") == [{"port": ports["report"], "protocol": "TCP"}]
    )
    assert selects(reports["to"][0]["podSelector"], template["metadata"]["labels"])
    assert {port["port"] for port in policy["ingress"][0]["ports"]} == {METRICS_PORT, SERVE_PORT}


def test_it_admits_pods_that_analyze_a_revision_and_no_others_of_the_namespace(
    policy: dict[str, Any],
) -> None:
    (rule,) = (rule for rule in policy["ingress"] if "podSelector" in rule["from"][0])
    admitted = [labels for labels in pod_labels() if selects(rule["from"][0]["podSelector"], labels)]
    assert admitted
    assert all(ANALYZED in labels for labels in admitted)
    assert {port["port"] for port in rule["ports"]} == {METRICS_PORT, SERVE_PORT}
