# SPDX-License-Identifier: Apache-2.0
"""The steps for a GPU run here on a CPU, so that they work on the first machine that has one."""

import json
import os
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.accelerators import GIBIBYTE
from tests.gpu import __main__ as runner
from tests.gpu import model_flops, packages
from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.machine import MUST_BE_PINNED, different, needs_gpus, unusable
from tests.gpu.measured import check_memory, seconds_per_step
from tests.gpu.scene import Scene
from tests.gpu.shapes import SHAPES
from tests.gpu.stage_process import adapt_varlen
from tests.gpu.steps import GUARDS, STEPS
from tools.bootstrap.uv import ROOT

run_all = partial(runner._run_all, rehearse=True)
ON_A_GPU_ONLY = {"kernels", "attention", "out-of-memory"}


def rehearse(folder: Path, *steps: str) -> dict[str, str]:
    """Outcomes of the steps, in a process that is not in this environment's PYTHONPATH."""
    search = os.pathsep.join((str(ROOT / "trainer_image"), str(ROOT)))
    subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--rehearse", "--results", str(folder / "results"), *steps],
        env={**os.environ, "PYTHONPATH": search},
        check=True,
    )
    return {
        file.stem: json.loads(file.read_text())["outcome"] for file in (folder / "results").glob("*.json")
    }


@pytest.mark.full
def test_every_step_runs_with_a_tiny_model(tmp_path: Path) -> None:
    outcomes = rehearse(tmp_path)

    assert outcomes.keys() == STEPS.keys()
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == ON_A_GPU_ONLY


def test_a_sample_of_the_steps_runs_with_a_tiny_model(tmp_path: Path) -> None:
    steps = ("machine", "kernels", "numbers", "method-LoRA")

    assert rehearse(tmp_path, *steps) == {
        name: "not run" if name in ON_A_GPU_ONLY else "passed" for name in steps
    }


@pytest.fixture
def folders(tmp_path: Path) -> runner.Folders:
    return runner.Folders(tmp_path / "results", tmp_path / "work")


def test_a_step_with_a_result_is_not_run_again(
    folders: runner.Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(name: str, *_: object) -> None:
        started.append(name)
        runner._write(folders.result(name), {"outcome": runner.PASSED, "figures": {}})

    monkeypatch.setattr(runner, "_start", start)
    for _ in range(2):
        run_all(("machine", "kernels"), folders, end=time.monotonic() + 1000)

    assert started == ["machine", "kernels"]


def test_no_step_begins_without_time_for_it(folders: runner.Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_start", lambda *_: pytest.fail("it began"))

    assert run_all(("machine",), folders, end=time.monotonic() + 1) == {}
    assert not folders.results.exists()


def test_a_step_that_the_time_of_the_call_cuts_off_has_no_result(
    folders: runner.Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MIN_STEP_SECONDS", 0)

    assert run_all(("machine",), folders, end=time.monotonic() + 0.05) == {}
    assert not folders.result("machine").exists()


@pytest.mark.parametrize("guard", GUARDS)
def test_no_step_follows_a_guard_that_failed(folders: runner.Folders, guard: str) -> None:
    runner._write(folders.result(guard), {"outcome": runner.FAILED, "why": "wrong versions"})

    results = run_all((guard, "method-LoRA"), folders, end=time.monotonic() + 1000)

    assert results.keys() == {guard}


PINNED = dict.fromkeys((*MUST_BE_PINNED, "torch", "numpy"), "2.15.0")


def test_versions_other_than_pinned_are_named() -> None:
    installed = {**PINNED, "torch": "2.11.0+cu130", "numpy": "missing", "peft": "0.1"}

    assert different(PINNED | {"torch": "2.15.0+cu132"}, PINNED) == "none"
    assert different(installed, PINNED) == (
        "peft 0.1 (pinned: 2.15.0), torch 2.11.0+cu130 (pinned: 2.15.0), numpy missing (pinned: 2.15.0)"
    )
    assert unusable(installed, PINNED) == ["peft is 0.1 and must be 2.15.0", "numpy is missing"]
    assert unusable(PINNED | {"torch": "2.9.1"}, PINNED) == ["torch is 2.9.1: the steps need 2.11 at least"]


@pytest.mark.parametrize(("predicted", "fails"), [(89, True), (90, False), (110, False), (111, True)])
def test_a_predicted_peak_that_is_off_by_more_than_a_tenth_fails_with_the_figures(
    predicted: int, fails: bool
) -> None:
    figures: dict[str, Any] = {"tokens/s": 1.0}
    if not fails:
        check_memory(predicted * GIBIBYTE, 100 * GIBIBYTE, figures)
        return
    with pytest.raises(GPUCheckFailed, match="off by more than 10%") as caught:
        check_memory(predicted * GIBIBYTE, 100 * GIBIBYTE, figures)
    assert caught.value.figures == figures


def test_the_first_steps_are_not_timed() -> None:
    compiling = [0.0, 50.0, 100.0]

    assert seconds_per_step([*compiling, 102.0, 104.0, 106.0]) == 2
    with pytest.raises(GPUCheckFailed, match="too few"):
        seconds_per_step([1.0])


def test_operations_of_a_model_are_those_of_its_weights_and_attention() -> None:
    config = SHAPES["8B"]
    weights = model_flops.matrix_weights(config)

    # All of Llama 3.1 8B but the embeddings and the norms.
    assert weights == 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert model_flops.per_token(config, "Full", 0) == 6 * weights
    assert model_flops.per_token(config, "LoRA", 0) == 4 * weights
    attention = model_flops.per_token(config, "LoRA", 4096) - 4 * weights
    assert attention == 3 * 4 * 4096 * 32 * 4096
    assert model_flops.utilization(1e9, 1e4, 100) == 0.1


def test_an_older_varlen_attention_gets_no_argument_that_it_does_not_know() -> None:
    def older(query: int, *, scale: float) -> tuple[int, float]:
        return query, scale

    def newer(query: int, *, scale: float, enable_gqa: bool = False) -> None: ...

    assert adapt_varlen(older)(1, scale=2.0, enable_gqa=True) == (1, 2.0)
    assert adapt_varlen(newer) is newer


def test_every_carried_package_has_a_pin_with_a_hash() -> None:
    text = packages.pins(packages.PINS.read_text(), packages.CARRIED) + packages.PEER_PINS.read_text()

    assert packages.pinned_versions(text).keys() == {*packages.CARRIED, "liger-kernel"}
    assert all("--hash=sha256:" in entry for entry in text.split("\n\n") if "==" in entry)
    with pytest.raises(ValueError, match="no pins of nothing"):
        packages.pins(packages.PINS.read_text(), ("nothing",))


def test_libraries_for_other_devices_are_not_carried(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("bitsandbytes/libbitsandbytes_cuda130.so", "bitsandbytes/libbitsandbytes_cuda118.so",
                 "bitsandbytes/libbitsandbytes_cpu.so", "trl/__init__.py", "bin/trl"):  # fmt: skip
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()

    packages.pack(site, tmp_path / "packed" / "packages.tar.xz")

    with tarfile.open(tmp_path / "packed" / "packages.tar.xz") as packed:
        assert packed.getnames() == [
            "bitsandbytes/libbitsandbytes_cpu.so",
            "bitsandbytes/libbitsandbytes_cuda130.so",
            "trl/__init__.py",
        ]


def test_steps_for_two_gpus_are_not_possible_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for step in ("ddp", "fsdp-full", "fsdp-qlora", "kill-a-rank"):
        with pytest.raises(StepNotPossible, match="one GPU"):
            STEPS[step](Scene(tmp_path, "cuda", rehearsal=False))
    needs_gpus(Scene(tmp_path, "cpu", rehearsal=True), 2)
