# SPDX-License-Identifier: Apache-2.0
"""`finetune run` with the tiny model, as a process: killed during training, continued, and served."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import yaml

from finetune_client.local.backend import LocalBackend
from tests.waiting import eventually
from tools.models.tiny import tiny

SECONDS = 120
TEAMS = ("billing", "courier")
CONTINUED = re.compile(r"resuming after step [1-9]|is already complete")
ENDPOINT = re.compile(r"serving tickets at (\S+)")


def objects() -> list[dict[str, Any]]:
    base = {"baseModel": {"uri": "pvc://models/tiny"}}
    specs = {
        "Dataset": {
            "sources": [{"uri": "configmap://rows/rows.jsonl"}],
            "split": {"validation": 0.1, "test": 0.2},
        },
        "FineTuneJob": {
            **base,
            "modelLine": "tickets",
            "dataset": {"ref": {"name": "tickets"}},
            "method": {"type": "LoRA", "lora": {"r": 4}},
            "hyperparameters": {"epochs": 60, "learningRate": 0.02},
            "checkpoints": {"stateEverySteps": 5},
            "evaluation": {"metrics": ["loss"], "gates": [{"metric": "loss", "max": 20}]},
        },
        "InferenceDeployment": {**base, "models": [{"name": "tickets", "follow": {"modelLine": "tickets"}}]},
    }
    header = {"apiVersion": "finetune.dev/v1alpha1", "metadata": {"name": "tickets"}}
    return [{**header, "kind": kind, "spec": spec} for kind, spec in specs.items()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tiny(), tmp_path / "models" / "tiny")
    rows = [
        json.dumps({"prompt": f"Case {number}: who?", "completion": TEAMS[number % 2]})
        for number in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    generator = {"configMapGenerator": [{"name": "rows", "files": ["rows.jsonl"]}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(generator))
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump_all(objects()))
    return tmp_path


@contextmanager
def program(
    folder: Path, *arguments: str, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[bytes]]:
    """`finetune run` in the folder; killed at the end of the block."""
    command = [sys.executable, "-m", "finetune_client", "run", "finetune.yaml", "--claim", "models=models"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **variables}
    with (
        (folder / "output").open("ab") as output,
        subprocess.Popen(
            [*command, *arguments], cwd=folder, stdout=output, stderr=output, env=environment
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def logs(folder: Path, stage: str) -> list[Path]:
    return sorted((folder / ".finetune" / "logs").glob(f"*-{stage}-*.log"))


def finetune(folder: Path, *arguments: str) -> str:
    """The output of a verb that reads the folder."""
    command = [sys.executable, "-m", "finetune_client", *arguments, "--local", ".finetune"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answer(endpoint: str) -> str:
    """What an endpoint answers to a question."""
    question = {
        "model": "tickets",
        "messages": [{"role": "user", "content": "Case 2: who?"}],
        "max_tokens": 4,
    }
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        response = client.post(f"{endpoint}/chat/completions", json=question)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def is_promoted(folder: Path) -> bool:
    """Whether any Checkpoint of the folder is promoted."""
    checkpoints = LocalBackend(folder / ".finetune").objects("Checkpoint")
    conditions = [each for found in checkpoints for each in found["status"]["conditions"]]
    return any(each["type"] == "Promoted" and each["status"] == "True" for each in conditions)


def test_a_killed_run_continues_is_served_and_never_trains_again(folder: Path) -> None:
    def output() -> str:
        return (folder / "output").read_text()

    def progress() -> object:
        return [path.stat().st_size for path in (folder / ".finetune").rglob("*.log")], output()

    with program(folder, "--no-serve") as killed:
        saved = folder / ".finetune" / "claims" / "artifacts" / "runs"
        eventually(
            "a saved state",
            lambda: any(saved.rglob("*/train/**/optimizer*")),
            SECONDS,
            output,
            progress=progress,
        )
        killed.kill()
    trained = logs(folder, "train")
    assert len(trained) == 1

    # The trainer of the killed program still runs; the next program lets it save, and continues.
    with program(folder) as second:
        found = eventually("it serves", lambda: ENDPOINT.search(output()), SECONDS, output, progress=progress)
        assert answer(found[1])
        assert finetune(folder, "chat", "tickets", "Case 2: who?", "--max-tokens", "4").strip()
        second.send_signal(signal.SIGINT)
        assert second.wait(SECONDS) == 0
    trained = logs(folder, "train")
    assert len(trained) == 2
    assert re.search(CONTINUED, trained[-1].read_text())
    job = LocalBackend(folder / ".finetune").get("FineTuneJob", "tickets")
    assert job is not None
    assert {each["type"]: each["status"] for each in job["status"]["conditions"]}["Ready"] == "True"

    with program(folder, "--no-serve") as third:
        assert third.wait(SECONDS) == 0
    assert logs(folder, "train") == trained

    # Every verb that reads or decides works on the folder too.
    assert "is rejected: wrong teams" in finetune(folder, "reject", "tickets", "--reason", "wrong teams")
    assert not is_promoted(folder)
    approved = finetune(folder, "approve", "tickets", "--reason", "read the answers")
    assert "is approved: read the answers" in approved
    assert is_promoted(folder)
    assert "tickets" in finetune(folder, "ls")
    assert "loss" in finetune(folder, "report", "tickets")
    assert "tickets" in finetune(folder, "wait", "tickets")
    assert re.search(CONTINUED, finetune(folder, "logs", "tickets", "--stage", "train"))
    assert finetune(folder, "plot", "tickets").strip()
    assert "files" in finetune(folder, "download", "tickets", "copy")
    assert list((folder / "copy").rglob("adapter_model.safetensors"))
    assert list((folder / "copy").rglob("*.html"))


def test_a_run_needs_nothing_that_only_linux_has(folder: Path) -> None:
    def output() -> str:
        return (folder / "output").read_text()

    manifests = objects()
    manifests[1]["spec"]["hyperparameters"] = {"maxSteps": 4, "learningRate": 0.02}
    (folder / "finetune.yaml").write_text(yaml.safe_dump_all(manifests))
    failing = {"PYTHONPATH": str(Path(__file__).with_name("without_linux"))}
    with program(folder, variables=failing) as running:
        found = eventually(
            "it serves",
            lambda: running.poll() is not None or ENDPOINT.search(output()),
            SECONDS,
            output,
            progress=output,
        )
        assert isinstance(found, re.Match), output()
        assert answer(found[1])
        running.send_signal(signal.SIGINT)
        assert running.wait(SECONDS) == 0
    assert is_promoted(folder), output()


def result(folder: Path) -> dict[str, object]:
    """What the run has at its end: digests of the weights, scores, gates and conditions."""
    job = LocalBackend(folder / ".finetune").get("FineTuneJob", "tickets")
    assert job is not None
    status = job["status"]
    weights = {each["step"]: each["digest"] for each in status["checkpoints"]}
    evaluation = {key: status["evaluation"][key] for key in ("gates", "scores")}
    ended = {(each["type"], each["status"], each["reason"]) for each in status["conditions"]}
    return {"weights": weights, "conditions": ended, **evaluation}


POINTS = {
    "prepare": "logs/*-prepare-*.log",
    "preflight": "logs/*-preflight-*.log",
    "a saved state": "claims/artifacts/runs/*/train/**/optimizer*",
    "evaluate": "logs/*-evaluate-*.log",
    "the evaluation's report": "claims/artifacts/runs/*/evaluate/evaluation.json",
}
"""Files that exist from a point of the run on, below its folder."""


@pytest.mark.full
def test_a_run_that_is_killed_at_each_of_its_points_ends_as_an_undisturbed_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    calm = tmp_path_factory.mktemp("calm") / "run"
    shutil.copytree(folder, calm)
    with program(calm, "--no-serve") as undisturbed:
        assert undisturbed.wait(SECONDS) == 0, (calm / "output").read_text()

    def exists(pattern: str) -> bool:
        return any((folder / ".finetune").glob(pattern))

    for point, pattern in POINTS.items():
        assert not exists(pattern), f"the run was beyond {point} when it was killed before"
        with program(folder, "--no-serve") as killed:
            eventually(point, partial(exists, pattern), SECONDS, (folder / "output").read_text)
            killed.kill()
    with program(folder, "--no-serve") as last:
        assert last.wait(SECONDS) == 0, (folder / "output").read_text()

    assert result(folder) == result(calm)
