# SPDX-License-Identifier: Apache-2.0
"""Every alert has a firing test, a silent test and a runbook; promtool comes from `make prometheus`."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.bootstrap.prometheus import program

ROOT = Path(__file__).parents[2]
RULES_FOLDER = ROOT / "charts" / "finetune-operator" / "alerts"
RULES_FILE = RULES_FOLDER / "finetune-operator.rules.yaml"
RECORDING_FILE = RULES_FOLDER / "recording.rules.yaml"
RECORDING_TESTS = ROOT / "tests" / "recording"
TESTS = ROOT / "tests" / "alerts"
RUNBOOKS = ROOT / "docs" / "runbooks"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES_FILE.read_text())["groups"]
    for rule in group["rules"]
}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    binary = program("promtool")
    if binary is None:
        pytest.skip("there is no promtool: run `make prometheus`")
    return subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)


def test_each_alert_has_its_files_and_no_file_is_left_over() -> None:
    assert {path.stem for path in TESTS.iterdir()} == set(RULES)
    assert {path.stem for path in RUNBOOKS.iterdir()} - {"README"} == set(RULES)
    assert set(re.findall(r"\((\w+)\.md\)", (RUNBOOKS / "README.md").read_text())) == set(RULES)


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(alert: str) -> None:
    rule = RULES[alert]
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{alert}.md"
    text = (RUNBOOKS / f"{alert}.md").read_text()
    for part in (f"# {alert}\n", "**Meaning.**", "**Impact.**", "**Look.**", "**Do.**"):
        assert part in text


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_fires_when_it_should_and_is_silent_when_it_should_be(alert: str) -> None:
    cases = yaml.safe_load((TESTS / f"{alert}.yaml").read_text())["tests"]
    expected = {bool(check.get("exp_alerts")) for case in cases for check in case["alert_rule_test"]}
    assert expected == {True, False}
    done = promtool("test", "rules", TESTS / f"{alert}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_the_series_of_an_engine_are_recorded_under_common_names(engine: str) -> None:
    done = promtool("test", "rules", RECORDING_TESTS / f"{engine}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", [RECORDING_FILE, RULES_FILE], ids=lambda file: file.name)
def test_promtool_finds_no_fault_in_the_rules(file: Path) -> None:
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
