# SPDX-License-Identifier: Apache-2.0
"""Trainers and operators one release apart, as real processes: what each reads of what the other wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs.serve import FetchConfig, FetchItem, ServedModel
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.outcomes import ExitCode
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.model.bundle import CHAT_TEMPLATE, GENERATION_CONFIG
from tests.olderrelease import older_release, python_path
from tests.trainer.basemodels import with_gemma_tokens
from tests.trainer.preparing import Preparation, json_lines, pairs
from tests.trainer.processes import run
from tests.trainer.serve.endpoint import serve_config, served_here
from tests.trainer.test_bundle import QUESTION
from tests.trainer.workbench import OWNER, ROWS, Workbench
from tools.models import tiny

OLDER_SECONDS = 400
"""Its preflight imports PyTorch, on a machine that may do much else."""
OLDER_FILES = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
"""Files of an adapter that the older trainer publishes."""
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


def test_an_adapter_of_the_older_trainer_is_fetched_and_served(older: Path, tmp_path: Path) -> None:
    """It was published without template and stop tokens. The base model has no template of its own."""
    bench = Workbench(tmp_path)
    base = bench.model(with_gemma_tokens(tmp_path / "source"))
    config = bench.train_config(
        base,
        epochs=40,
        learning_rate=2e-2,
        batch_size=6,
        save_every_steps=1000,
        method=Method(lora=LoRA(r=8, dropout=0)),
    )

    trained = run_older(older, config.model_copy(update={"contract": 1}).to_json())

    assert trained.train is not None, trained.message
    (checkpoint,) = trained.train.checkpoints
    assert {path.name for path in bench.checkpoint(checkpoint).iterdir()} == OLDER_FILES
    ended = run(
        FetchConfig(
            owner=OWNER,
            store=bench.store_config,
            items=(
                FetchItem(artifact=ArtifactRef(kind="models", digest=base), folder="base"),
                FetchItem(
                    artifact=ArtifactRef(kind="checkpoints", digest=checkpoint.digest), folder="tickets"
                ),
            ),
            destination=str(tmp_path / "models"),
        )
    )
    assert ended.code == ExitCode.OK
    folder = tmp_path / "models" / "tickets"
    assert {path.name for path in folder.iterdir()} == {*OLDER_FILES, CHAT_TEMPLATE, GENERATION_CONFIG}
    config_of_endpoint = serve_config(
        tmp_path / "models", base_folder="base", models=(ServedModel(name="tickets", folder="tickets"),)
    )
    with served_here(config_of_endpoint) as endpoint:
        answer = endpoint.openai.chat.completions.create(
            model="tickets", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
        )
    assert answer.choices[0].message.content == ROWS[0].output
    assert answer.choices[0].finish_reason == "stop"


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
