# SPDX-License-Identifier: Apache-2.0
"""Steps that need two GPUs: replicated and sharded weights, and a process that is killed."""

import signal
import subprocess
from typing import Final

import psutil  # type: ignore[import-untyped]

from finetune_trainer.contract.method import Method, Sharding
from finetune_trainer.contract.vocabulary import ExitCode
from tests.gpu.errors import GPUCheckFailed
from tests.gpu.machine import needs_gpus
from tests.gpu.measured import even, measured
from tests.gpu.scene import GPUFigures, Scene
from tests.gpu.training import LEARNING_RATE, REHEARSED_LEARNING_RATE, signal_after_a_save

DEVICES: Final = 2
TOKENS: Final = 512
STEPS: Final = 20


def together(scene: Scene, chosen: Method, sharding: Sharding) -> GPUFigures:
    """Train with two processes; the loss must fall."""
    needs_gpus(scene, DEVICES)
    run = f"together-{chosen.type}-{sharding}"
    data = scene.dataset(chosen, rows=scene.steps(STEPS) * 8, tokens=TOKENS - 64, held_out=8)
    found = scene.preflight(
        run,
        scene.model(scene.size("0.7B")),
        data,
        chosen,
        devices=DEVICES,
        sharding=sharding,
        epochs=1,
        batch_size=8,
        learning_rate=REHEARSED_LEARNING_RATE if scene.rehearsal else LEARNING_RATE,
    )
    trained = scene.train(scene.train_config(run, data, chosen, found))
    first, last = trained.loss_curve[0][1], trained.loss_curve[-1][1]
    figures: GPUFigures = {
        "loss at first": first,
        "loss at last": last,
        **measured(scene, found, trained, method=chosen, rows=even(scene, "0.7B", TOKENS)),
    }
    if not last < first:
        raise GPUCheckFailed(f"the loss went from {first} to {last} nats", figures)
    return figures


def killed_rank(scene: Scene) -> GPUFigures:
    """Kill one of two processes after a save: the pod must end, and the next one must resume."""
    needs_gpus(scene, DEVICES)
    chosen = Method(type="LoRA")
    data = scene.dataset(chosen, rows=STEPS * 8, tokens=192)
    found = scene.preflight(
        "killed-rank",
        scene.model(scene.size("0.7B")),
        data,
        chosen,
        devices=DEVICES,
        epochs=1,
        batch_size=8,
        save_every_steps=2,
    )
    config = scene.train_config("killed-rank", data, chosen, found)
    code, output = signal_after_a_save(scene, config, signal.SIGKILL, _to_the_last_process)
    if code in (ExitCode.OK, ExitCode.BAD_CONFIG, ExitCode.BAD_DATA):
        raise GPUCheckFailed(f"exit code {code} after a process was killed: {output[-2000:]}")
    trained = scene.train(config)
    if trained.restarts != 1:
        raise GPUCheckFailed(f"{trained.restarts} restarts are counted instead of 1")
    return {"exit code of the pod": code, "steps": trained.steps, "restarts": trained.restarts}


def _to_the_last_process(launcher: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """Send a signal to the process of the highest rank that a launcher started."""
    psutil.Process(launcher.pid).children()[-1].send_signal(number)
