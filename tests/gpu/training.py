# SPDX-License-Identifier: Apache-2.0
"""Steps that train: every method, long rows compared with TRL, quantized weights, and pods that end early."""

import json
import signal
import subprocess
import sys
import time
from typing import Final

from finetune_trainer.contract.accelerators import GIBIBYTE
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import PreflightResult, TrainResult
from finetune_trainer.contract.vocabulary import ExitCode
from tests.gpu.errors import GPUCheckFailed
from tests.gpu.machine import needs
from tests.gpu.scene import GPUFigures, Scene, messages
from tests.methods import method_of
from tools.bench.start.measure import forget, seconds_to_first_step, seconds_to_read

STEPS: Final = 20
LEARNING_RATE: Final = 1e-3
"""High enough that random weights learn something in 20 steps."""
MAX_LOSS_DIFFERENCE: Final = 0.01
"""Between a disturbed and an undisturbed run, in nats: kernels of a GPU do not always sum in one order."""


def method(scene: Scene, name: str) -> GPUFigures:
    """Twenty optimizer steps of one method with a model of 0.7B; the loss must fall."""
    chosen = method_of(name)
    data = scene.dataset(chosen, rows=STEPS * 8, tokens=scene.tokens(512), held_out=8)
    model = scene.model(scene.size("0.7B"))
    found = scene.preflight(name, model, data, chosen, epochs=1, learning_rate=LEARNING_RATE)
    trained = scene.train(scene.train_config(name, data, chosen, found))
    first, last = trained.loss_curve[0][1], trained.loss_curve[-1][1]
    if not last < first:
        raise GPUCheckFailed(f"{name}: the loss went from {first} to {last} nats in {trained.steps} steps")
    return {"loss at first": first, "loss at last": last, **_measured(found, trained)}


def long_rows(scene: Scene, tokens: int) -> GPUFigures:
    """LoRA on 8B with rows of one length: tokens per second, memory against its prediction."""
    return _eight_billion(scene, Method(type="LoRA"), f"lora-{tokens}", tokens)


def beside_trl(scene: Scene) -> GPUFigures:
    """The rows of `long_rows` with TRL's trainer at its best settings: tokens per second, ours by theirs."""
    needs("trl", "datasets", "peft")
    tokens = 2048
    ours = long_rows(scene, tokens)
    printed = subprocess.run(
        [
            *(sys.executable, "-m", "tests.gpu.peer", str(scene.model(scene.size("8B"))), str(_rows(tokens))),
            *(str(_tokens(scene, tokens)), str(scene.folder / "peer"), str(ours["checkpointing"] == "yes")),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    theirs = json.loads(printed.splitlines()[-1])
    return {
        **ours,
        "TRL tokens/s": round(theirs["tokens_per_second"], 1),
        "TRL peak memory, GiB": round(theirs["peak_bytes"] / GIBIBYTE, 2),
        "TRL with Liger": "yes" if theirs["liger"] else "no",
        "TRL with FlashAttention": "yes" if theirs["flash_attention"] else "no",
        "relative to TRL": round(float(ours["tokens/s"]) / theirs["tokens_per_second"], 2),
    }


def quantized(scene: Scene) -> GPUFigures:
    """QLoRA on 8B."""
    return _eight_billion(scene, Method(type="QLoRA"), "qlora", 2048)


def starting(scene: Scene) -> GPUFigures:
    """From the start of the train stage to its first step on 8B, and the time to read the weights."""
    chosen = Method(type="LoRA")
    data = scene.dataset(chosen, rows=8, tokens=scene.tokens(256))
    found = scene.preflight("start", scene.model(scene.size("8B")), data, chosen, epochs=1)
    weights = scene.store.artifact(ArtifactRef(kind="models", digest=found.base_model)).rglob("*.safetensors")
    files = sorted(weights)
    read_seconds = seconds_to_read(files)
    forget(files)
    hidden = {} if scene.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    start_seconds = seconds_to_first_step(scene.train_config("start", data, chosen, found), hidden)
    return {
        "weights, GB": round(sum(file.stat().st_size for file in files) / 1e9, 1),
        "s to read them": round(read_seconds, 1),
        "s to the first step": round(start_seconds, 1),
        "relative to reading": round(start_seconds / read_seconds, 2),
    }


def _eight_billion(scene: Scene, chosen: Method, run: str, tokens: int) -> GPUFigures:
    data = scene.dataset(chosen, rows=_rows(tokens), tokens=_tokens(scene, tokens))
    found = scene.preflight(run, scene.model(scene.size("8B")), data, chosen, epochs=1)
    return _measured(found, scene.train(scene.train_config(run, data, chosen, found)))


def _rows(tokens: int) -> int:
    """Number of rows of a length, for at least one optimizer step and about 64k tokens."""
    return max(8, 32 * 2048 // tokens)


def _tokens(scene: Scene, tokens: int) -> int:
    """Tokens of a row's text: the chat template adds a few."""
    length = scene.tokens(tokens)
    return length - min(64, length // 2)


def interrupted(scene: Scene) -> GPUFigures:
    """Kill a run after a save, stop it by SIGTERM, let it end: it must learn as an undisturbed run does."""
    chosen = Method(type="LoRA")
    data = scene.dataset(chosen, rows=STEPS * 8, tokens=scene.tokens(256), held_out=8)
    model = scene.model(scene.size("0.7B"))
    found = scene.preflight("undisturbed", model, data, chosen, epochs=1)
    frequent = found.hyperparameters.model_copy(update={"save_every_steps": 2})
    found = found.model_copy(update={"hyperparameters": frequent})
    undisturbed = scene.train(scene.train_config("undisturbed", data, chosen, found))
    config = scene.train_config("disturbed", data, chosen, found)

    _signal_after_a_save(scene, config, signal.SIGKILL)
    begin = time.perf_counter()
    code, output = _signal_after_a_save(scene, config, signal.SIGTERM)
    if code != ExitCode.PREEMPTED_SAVED:
        raise GPUCheckFailed(
            f"exit code {code} after SIGTERM, not {ExitCode.PREEMPTED_SAVED}: {output[-2000:]}"
        )
    stopped = round(time.perf_counter() - begin, 1)
    disturbed = scene.train(config)
    if disturbed.restarts != 2:
        raise GPUCheckFailed(f"{disturbed.restarts} restarts are counted instead of 2")
    apart = abs((disturbed.train_loss or 0) - (undisturbed.train_loss or 0))
    if apart > MAX_LOSS_DIFFERENCE:
        raise GPUCheckFailed(
            f"the loss of the disturbed run differs by {apart:.3f} nats from the undisturbed one"
        )
    equal = disturbed.checkpoints[0].digest == undisturbed.checkpoints[0].digest
    return {
        "start to exit with SIGTERM, s": stopped,
        "difference in loss, nats": round(apart, 5),
        "bit-identical weights": "yes" if equal else "no",
    }


def _signal_after_a_save(scene: Scene, config: TrainConfig, number: signal.Signals) -> tuple[int, str]:
    """Start the run, send a signal after its next periodic save, and return exit code and log."""
    process = scene.start(config)
    lines: list[str] = []
    sent = False
    if process.stdout is None:
        raise GPUCheckFailed("the process has no output")
    for line in process.stdout:
        lines.append(line)
        if not sent and any(message.startswith("saved the state") for message in messages(line)):
            process.send_signal(number)
            sent = True
    return process.wait(), "".join(lines)


def _measured(found: PreflightResult, trained: TrainResult) -> GPUFigures:
    """Speed and memory of a run, beside what preflight predicted."""
    used = found.hyperparameters
    figures: GPUFigures = {
        "tokens/s": round(trained.tokens_per_second or 0, 1),
        "rows per step": used.batch_size,
        "checkpointing": "yes" if used.gradient_checkpointing else "no",
        "peak memory, GiB": round((trained.device_memory_bytes or 0) / GIBIBYTE, 2),
    }
    if (prediction := found.prediction) is not None:
        figures["predicted memory, GiB"] = round(prediction.device_memory_bytes / GIBIBYTE, 2)
        if trained.tokens_per_second and trained.tokens:
            per_token = prediction.flops / trained.tokens
            figures["TFLOP/s"] = round(per_token * trained.tokens_per_second / 1e12, 1)
    return figures
