"""Trainers and operators one release apart, as real processes: what each reads of what the other wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import StageResult
from tests.olderrelease import older_release, python_path
from tests.trainer.preparing import Preparation, json_lines, pairs
from tests.trainer.processes import run
from tests.trainer.workbench import Workbench
from tools.models import tiny

OLDER_SECONDS = 400
"""Its preflight imports PyTorch, on a machine that may do much else."""
READ = """
import sys
from finetune_trainer.contract import StageResult
result = StageResult.parse(sys.stdin.read())
print(result is not None and result.outcome)
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older_release(tmp_path_factory.mktemp("older"))


def run_older(older: Path, config: str) -> StageResult:
    """A trainer process of the older release, and its result as this release's operator reads it."""
    environment = {**os.environ, "PYTHONPATH": python_path(older), CONFIG_ENV: config}
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=OLDER_SECONDS,
        check=False,
    )
    prefix = "termination message: "
    (message,) = (
        line["message"].removeprefix(prefix)
        for line in map(json.loads, ended.stdout.splitlines())
        if line["message"].startswith(prefix)
    )
    result = StageResult.parse(message)
    assert result is not None, message
    return result


def read_by_older(older: Path, text: str) -> str:
    """The outcome that the older release's operator reads in a result."""
    environment = {**os.environ, "PYTHONPATH": python_path(older)}
    command = [sys.executable, "-c", READ]
    ended = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


NEW: dict[str, Any] = {"contract": 1, "nonce": "0f"}


def test_the_older_trainer_prepares_and_checks_with_configs_of_this_operator(
    older: Path, tmp_path: Path
) -> None:
    bench = Workbench(tmp_path)
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source).model_copy(update=NEW)

    prepared = run_older(older, config.to_json())

    assert prepared.outcome == "Succeeded", prepared.message
    assert prepared.prepare is not None
    assert prepared.prepare.dataset is not None
    preflight = bench.preflight_config(tiny(), prepared.prepare.dataset)
    checked = run_older(older, preflight.model_copy(update={**NEW, "store": config.store}).to_json())
    assert checked.outcome == "Succeeded", checked.message
    assert checked.preflight is not None


def test_the_older_operator_reads_what_this_trainer_answers_it(older: Path, tmp_path: Path) -> None:
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source).model_copy(update={"contract": 1})

    ended = run(config)

    assert read_by_older(older, ended.termination_message) == "Succeeded"
    newer = ended.result.model_copy(update={"contract": 2, "nonce": "0f"})
    assert read_by_older(older, newer.to_json()) == "False"


def test_a_result_in_the_store_is_read_by_the_older_trainer(older: Path, tmp_path: Path) -> None:
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source).model_copy(update={"nonce": "0f"})
    first = run(config).result
    source.unlink()

    again = run_older(older, config.model_copy(update={"contract": 1}).to_json())

    assert again.outcome == "Succeeded", again.message
    assert again.prepare is not None
    assert first.prepare is not None
    assert again.prepare.dataset == first.prepare.dataset
