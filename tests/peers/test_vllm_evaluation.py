# SPDX-License-Identifier: Apache-2.0
"""Answers of an evaluation by the real vLLM: the predictions are those of the trainer, in float32."""

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_operator.manifests.answer_engine import answer_servers
from finetune_trainer.contract.configs import AnswersConfig, AnswerServer
from finetune_trainer.contract.environment import ANSWERS_MODULE, ANSWERS_MOUNT, CONFIG_ENV, SERVE_PORT
from finetune_trainer.contract.evaluation import EngineVersion, PromptedModel
from finetune_trainer.contract.method import LoRA, Method
from tests.peers.test_vllm import UNTIL_KNOWN
from tests.peers.vllmserver import ENVIRONMENT, OPTIONS
from tests.trainer.test_evaluate_engine import METRICS, SUBJECTS, Pod, predictions
from tests.trainer.test_evaluate_live import Line
from tools.cluster.layout import free_port
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")

PYTHON: Final = str(vllm.environment() / "bin" / "python")
PROMPTED: Final = PromptedModel(examples=2)


def here(server: AnswerServer, folder: Path, port: int) -> AnswerServer:
    """The server of the operator, in the environment of the tests and on another port."""
    _, *arguments = (each.replace(ANSWERS_MOUNT, str(folder)) for each in server.command)
    arguments = [f"--port={port}" if each == f"--port={SERVE_PORT}" else each for each in arguments]
    command = (PYTHON, "-m", "vllm.entrypoints.cli.main", *arguments, *OPTIONS)
    return server.model_copy(update={"command": command})


def answer(pod: Pod) -> None:
    """Run the container `answers` with the Python and the libraries of vLLM."""
    port = free_port()
    servers = tuple(here(server, pod.folder, port) for server in answer_servers(pod.config, 0))
    config = AnswersConfig(servers=servers, folder=str(pod.folder), port=port)
    environment = {
        **ENVIRONMENT,
        "PATH": os.environ["PATH"],
        "HOME": str(pod.folder),
        "VLLM_CACHE_ROOT": str(vllm.environment() / "cache"),
        "PYTHONPATH": str(pod.exchange.python),
        CONFIG_ENV: config.to_json(),
    }
    subprocess.run([PYTHON, "-m", ANSWERS_MODULE], env=environment, check=True)


def test_vllm_gives_the_predictions_of_the_trainer(tmp_path: Path) -> None:
    line = Line(tmp_path)
    settings: dict[str, Any] = {**UNTIL_KNOWN, "epochs": 10}
    line.tuned = line.train(line.base, Method(lora=LoRA(r=8, alpha=16, dropout=0)), **settings)
    champion = line.champion("adapter")
    folder = tmp_path / "answers"
    folder.mkdir()
    pod = Pod.of(line, folder, "vllm", champion, prompted=PROMPTED)

    pod.write_prompts()
    answer(pod)
    result = line.bench.run_evaluate(pod.config)

    expected = line.evaluate("trainer", champion, subjects=SUBJECTS, metrics=METRICS, prompted=PROMPTED)
    assert result.engine == EngineVersion(name="VLLM", version=vllm.version())
    header, *rows = pod.predictions()
    assert header.pop("engine") == vllm.version()
    assert [header, *rows] == predictions(line, "trainer")
    assert result.scores == expected.scores
