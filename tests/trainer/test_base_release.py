# SPDX-License-Identifier: Apache-2.0
"""Trainers and operators of the base release and of this one, as real processes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.serving import FetchConfig, FetchItem, ServedModel
from finetune_trainer.contract.vocabulary import ExitCode
from tests.baserelease import BaseRelease
from tests.trainer.basemodels import with_gemma_tokens
from tests.trainer.preparing import Preparation, json_lines, pairs
from tests.trainer.processes import run
from tests.trainer.serve.endpoint import serve_config, served_here
from tests.trainer.test_bundle import QUESTION
from tests.trainer.workbench import OWNER, ROWS, Workbench
from tools.models import tiny

BASE_SECONDS = 400
"""Its preflight imports PyTorch, on a machine that may do much else."""
NONCE = "0f"
READ = """
import sys
from finetune_trainer.contract.results import StageResult
result = StageResult.parse(sys.stdin.read())
print(result is not None and result.outcome, result is not None and result.nonce)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseRelease:
    return BaseRelease(tmp_path_factory.mktemp("base"))


def run_base(base: BaseRelease, config: StageConfig) -> StageResult:
    """A trainer process of the base release, and its result as this release's operator reads it."""
    text = config.model_copy(update={"contract": base.contract}).to_json()
    ended = subprocess.run(
        [base.python, "-m", "finetune_trainer"],
        env={**os.environ, **base.environment, CONFIG_ENV: text},
        stdout=subprocess.PIPE,
        text=True,
        timeout=BASE_SECONDS,
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


def read_by_base(base: BaseRelease, text: str) -> str:
    """The outcome and the nonce that the operator of the base release reads in a result."""
    environment = {**os.environ, **base.environment}
    command = [str(base.python), "-c", READ]
    ended = subprocess.run(command, env=environment, input=text, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def test_an_adapter_of_the_base_release_is_fetched_and_served(base: BaseRelease, tmp_path: Path) -> None:
    """The base model has no template of its own."""
    bench = Workbench(tmp_path)
    model = bench.model(with_gemma_tokens(tmp_path / "source"))
    config = bench.train_config(
        model,
        epochs=40,
        learning_rate=2e-2,
        batch_size=6,
        save_every_steps=1000,
        method=Method(lora=LoRA(r=8, dropout=0)),
    )

    trained = run_base(base, config)

    assert trained.train is not None, trained.message
    (checkpoint,) = trained.train.checkpoints
    ended = run(
        FetchConfig(
            owner=OWNER,
            store=bench.store_config,
            items=(
                FetchItem(artifact=ArtifactRef(kind="models", digest=model), folder="base"),
                FetchItem(
                    artifact=ArtifactRef(kind="checkpoints", digest=checkpoint.digest), folder="tickets"
                ),
            ),
            destination=str(tmp_path / "models"),
        )
    )
    assert ended.code == ExitCode.OK
    config_of_endpoint = serve_config(
        tmp_path / "models", base_folder="base", models=(ServedModel(name="tickets", folder="tickets"),)
    )
    with served_here(config_of_endpoint) as endpoint:
        answer = endpoint.openai.chat.completions.create(
            model="tickets", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
        )
    assert answer.choices[0].message.content == ROWS[0].output
    assert answer.choices[0].finish_reason == "stop"


def test_the_base_releases_trainer_prepares_and_checks_with_configs_of_this_operator(
    base: BaseRelease, tmp_path: Path
) -> None:
    bench = Workbench(tmp_path)
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source).model_copy(update={"nonce": NONCE})

    prepared = run_base(base, config)

    assert (prepared.outcome, prepared.nonce) == ("Succeeded", NONCE), prepared.message
    assert prepared.prepare is not None
    assert prepared.prepare.dataset is not None
    preflight = bench.preflight_config(tiny(), prepared.prepare.dataset)
    checked = run_base(base, preflight.model_copy(update={"nonce": NONCE, "store": config.store}))
    assert checked.outcome == "Succeeded", checked.message
    assert checked.preflight is not None


def test_the_base_releases_operator_reads_what_this_trainer_answers_it(
    base: BaseRelease, tmp_path: Path
) -> None:
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source).model_copy(update={"contract": base.contract, "nonce": NONCE})

    ended = run(config)

    assert read_by_base(base, ended.termination_message) == f"Succeeded {NONCE}"
    newer = {**json.loads(ended.termination_message), "contract": base.contract + 1, "news": {"a": 1}}
    assert read_by_base(base, json.dumps(newer)) == f"Succeeded {NONCE}"


def test_a_result_in_the_store_is_read_by_the_base_releases_trainer(
    base: BaseRelease, tmp_path: Path
) -> None:
    preparation = Preparation(tmp_path)
    source = preparation.write("rows.jsonl", json_lines(pairs(60)))
    config = preparation.config(source)
    first = run(config).result
    source.unlink()

    again = run_base(base, config)

    assert again.outcome == "Succeeded", again.message
    assert again.prepare is not None
    assert first.prepare is not None
    assert again.prepare.dataset == first.prepare.dataset
