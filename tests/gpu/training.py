# SPDX-License-Identifier: Apache-2.0
"""Steps that train: every method, long rows compared with TRL, quantized weights, and pods that end early."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from finetune_trainer.contract.accelerators import GIBIBYTE
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import DEFAULT_OBJECTIVE, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import ExitCode
from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.machine import needs
from tests.gpu.measured import WARM_UP_STEPS, even, measured, spread
from tests.gpu.scene import STAGE_MODULE, GPUFigures, PeerTask, Scene, messages
from tests.gpu.stage_process import MEMORY_SHARE_ENV
from tests.methods import method_of
from tools.bench.start.measure import forget, seconds_to_first_step, seconds_to_read

STEPS: Final = 20
LEARNING_RATE: Final = 1e-3
"""High enough that random weights learn something in 20 steps."""
REHEARSED_LEARNING_RATE: Final = 1e-2
"""The same for a tiny model and the few steps of a rehearsal."""
MAX_LOSS_DIFFERENCE: Final = 0.01
"""Between a disturbed and an undisturbed run, in nats: kernels of a GPU do not always sum in one order."""
STEP_TOKENS: Final = 16_384
"""Tokens of an optimizer step on 8B, with rows of up to this length."""
MEASURED_STEPS: Final = 10
"""Steps of a run on 8B after the warm-up."""
PEER_STEPS: Final = 30
"""The same for the comparison with TRL."""
PEER_ROWS: Final = 8
"""Rows per optimizer step of that comparison."""
PEER_LENGTHS: Final = (256, 2048)
"""Its shortest and longest row, in tokens."""
EXHAUSTED_SHARE: Final = 0.7
"""Memory that a run gets in `out_of_memory`, relative to its prediction."""
TURNS: Final = 2
"""Runs of each trainer in that comparison, one after the other in turns."""
TEMPLATE_TOKENS: Final = 64
"""More than the chat template adds to a row, and than its text gains when it is encoded again."""


def method_step(name: str) -> str:
    """The name of the step of a method."""
    return f"method-{name.replace(' ', '-')}"


def method(scene: Scene, name: str) -> GPUFigures:
    """Twenty optimizer steps of one method with a model of 0.7B; the loss must fall."""
    chosen = method_of(name)
    run, tokens = method_step(name), 512
    data = scene.dataset(chosen, rows=scene.steps(STEPS) * 8, tokens=_text(tokens), held_out=8)
    found = scene.preflight(
        run,
        scene.model(scene.size("0.7B")),
        data,
        chosen,
        epochs=1,
        batch_size=8,
        learning_rate=REHEARSED_LEARNING_RATE if scene.rehearsal else LEARNING_RATE,
    )
    times = scene.folder / "times"
    trained = scene.train(scene.train_config(run, data, chosen, found), times)
    first, last = trained.loss_curve[0][1], trained.loss_curve[-1][1]
    # Methods that learn from pairs compute more than one pass, and have no utilization here.
    learns_from_completions = chosen.objective == DEFAULT_OBJECTIVE
    figures: GPUFigures = {
        "loss at first": first,
        "loss at last": last,
        **measured(
            scene,
            found,
            trained,
            method=chosen if learns_from_completions else None,
            rows=even(scene, "0.7B", tokens),
            times=times,
        ),
    }
    if not last < first:
        raise GPUCheckFailed(
            f"{name}: the loss went from {first} to {last} nats in {trained.steps} steps", figures
        )
    return figures


def out_of_memory(scene: Scene) -> GPUFigures:
    """Train with less memory than predicted: the run must end, with smaller batches or with checkpointing."""
    if scene.device != "cuda":
        raise StepNotPossible("the memory of a GPU can be limited, that of a CPU not")
    import torch

    chosen = Method(type="LoRA")
    data = scene.dataset(chosen, rows=64, tokens=_text(512))
    model = scene.model(scene.size("0.7B"))
    found = scene.preflight("out-of-memory", model, data, chosen, epochs=1, batch_size=16)
    if found.prediction is None:
        raise GPUCheckFailed("preflight predicted nothing; its log says why")
    limit = EXHAUSTED_SHARE * found.prediction.device_memory_bytes
    share = limit / torch.cuda.get_device_properties(0).total_memory
    config = scene.train_config("out-of-memory", data, chosen, found)
    trained = scene.run(config, {MEMORY_SHARE_ENV: str(share)}).train
    if trained is None:
        raise GPUCheckFailed("train ended without its result")
    figures: GPUFigures = {
        "limit, GiB": round(limit / GIBIBYTE, 2),
        "peak memory, GiB": round((trained.device_memory_bytes or 0) / GIBIBYTE, 2),
        "tokens at once, planned": found.hyperparameters.max_batch_tokens or "no limit",
        "tokens at once, used": trained.max_batch_tokens or "as planned",
        "checkpointing turned on": "yes" if trained.gradient_checkpointing else "no",
    }
    if not (trained.max_batch_tokens or trained.max_batch_rows or trained.gradient_checkpointing):
        raise GPUCheckFailed("the run did not change its batches, so its memory was not exhausted", figures)
    return figures


def long_rows(scene: Scene, tokens: int) -> GPUFigures:
    """LoRA on 8B with rows of one length: tokens per second, memory against its prediction."""
    return _eight_billion(scene, Method(type="LoRA"), f"lora-8b-{tokens}", tokens)


def quantized(scene: Scene) -> GPUFigures:
    """QLoRA on 8B."""
    return _eight_billion(scene, Method(type="QLoRA"), "qlora-8b", 2048)


def beside_trl(scene: Scene) -> GPUFigures:
    """The same rows with our trainer and with TRL's, in turns: tokens per second, ours by theirs.

    Both take the same rows, of random lengths, as many per step, and have the same adapter. Both are timed
    after the warm-up. TRL uses Liger's kernels, and FlashAttention where it is installed.
    """
    needs("trl", "datasets", "peft")
    if scene.device == "cuda":
        needs("liger_kernel")
    chosen = Method(type="LoRA")
    shortest, longest = PEER_LENGTHS
    rows = scene.steps(PEER_STEPS + WARM_UP_STEPS) * PEER_ROWS
    data = scene.dataset(chosen, rows, _text(longest), shortest=_text(shortest))
    model = scene.model(scene.size("8B"))
    ours: list[GPUFigures] = []
    theirs: list[dict[str, Any]] = []
    for turn in range(1 if scene.rehearsal else TURNS):
        run = f"beside-trl-{turn}"
        found = scene.preflight(
            run, model, data, chosen, epochs=1, batch_size=PEER_ROWS, max_sequence_length=longest
        )
        times = scene.folder / f"times-{turn}"
        trained = scene.train(scene.train_config(run, data, chosen, found), times)
        spread_rows = spread(scene, "8B", shortest, longest)
        ours.append(measured(scene, found, trained, method=chosen, rows=spread_rows, times=times))
        theirs.append(
            _train_with_trl(
                scene,
                PeerTask(
                    model=str(model),
                    rows=rows,
                    shortest=_text(shortest),
                    longest=_text(longest),
                    rows_per_step=PEER_ROWS,
                    # As many tokens at once as ours, if all rows were the longest.
                    rows_at_once=_rows_at_once(found.hyperparameters, longest),
                    checkpointing=ours[-1]["checkpointing"] == "yes",
                    folder=str(scene.folder / f"peer-{turn}"),
                ),
            )
        )
    our_speeds = [float(each["tokens/s"]) for each in ours]
    their_speeds = [each["tokens_per_second"] for each in theirs]
    return {
        **ours[-1],
        "tokens/s": _listed(our_speeds),
        "TRL tokens/s": _listed(their_speeds),
        "TRL rows at once": theirs[-1]["rows_at_once"],
        "TRL peak memory, GiB": round(theirs[-1]["peak_bytes"] / GIBIBYTE, 2),
        "TRL with Liger": "yes" if theirs[-1]["liger"] else "no",
        "TRL with FlashAttention and packing": "yes" if theirs[-1]["flash_attention"] else "no",
        "relative to TRL": round(sum(our_speeds) / sum(their_speeds), 2),
    }


def _train_with_trl(scene: Scene, task: PeerTask) -> dict[str, Any]:
    """Run `tests.gpu.peer` in a process of its own. Returns what it printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu.peer", task.to_json()],
        env=scene.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise GPUCheckFailed(f"TRL ended with exit code {ended.returncode}:\n{ended.stdout[-3000:]}")
    printed: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return printed


def _rows_at_once(used: Hyperparameters, longest: int) -> int:
    """Rows of the longest length in the tokens or rows that the run has at once, at most those of a step."""
    if used.max_batch_tokens is not None:
        return min(PEER_ROWS, max(1, used.max_batch_tokens // longest))
    return min(PEER_ROWS, used.max_batch_rows or PEER_ROWS)


def _listed(speeds: Iterable[float]) -> str:
    return ", ".join(f"{speed:.0f}" for speed in speeds)


def starting(scene: Scene) -> GPUFigures:
    """From the start of the train stage to its first step on 8B, and the time to read the weights."""
    chosen = Method(type="LoRA")
    data = scene.dataset(chosen, rows=8, tokens=_text(256))
    found = scene.preflight("start-8b", scene.model(scene.size("8B")), data, chosen, epochs=1)
    weights = scene.store.artifact(ArtifactRef(kind="models", digest=found.base_model)).rglob("*.safetensors")
    files = sorted(weights)
    read_seconds = seconds_to_read(files)
    forget(files)
    hidden = {} if scene.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    config = scene.train_config("start-8b", data, chosen, found)
    start_seconds = seconds_to_first_step(config, hidden, STAGE_MODULE)
    return {
        "weights, GB": round(sum(file.stat().st_size for file in files) / 1e9, 1),
        "s to read them": round(read_seconds, 1),
        "s to the first step": round(start_seconds, 1),
        "relative to reading": round(start_seconds / read_seconds, 2),
    }


def _eight_billion(scene: Scene, chosen: Method, run: str, tokens: int) -> GPUFigures:
    # 32k tokens per step are 10 s: fewer steps, so that the run ends within the limit of a step.
    steps = WARM_UP_STEPS + (MEASURED_STEPS if tokens <= STEP_TOKENS else MEASURED_STEPS // 2)
    steps, batch = (2, 1) if scene.rehearsal else (steps, max(1, STEP_TOKENS // tokens))
    data = scene.dataset(chosen, rows=steps * batch, tokens=_text(tokens))
    found = scene.preflight(
        run,
        scene.model(scene.size("8B")),
        data,
        chosen,
        epochs=1,
        batch_size=batch,
        max_sequence_length=tokens,
    )
    times = scene.folder / "times"
    trained = scene.train(scene.train_config(run, data, chosen, found), times)
    return measured(scene, found, trained, method=chosen, rows=even(scene, "8B", tokens), times=times)


def _text(tokens: int) -> int:
    """Tokens of the text of a row that has at most `tokens`."""
    return tokens - TEMPLATE_TOKENS


def interrupted(scene: Scene) -> GPUFigures:
    """Kill a run after a save, stop it by SIGTERM, let it end: it must learn as an undisturbed run does."""
    chosen = Method(type="LoRA")
    scene.store.delete_run("disturbed")
    data = scene.dataset(chosen, rows=STEPS * 8, tokens=_text(256), held_out=8)
    model = scene.model(scene.size("0.7B"))
    found = scene.preflight("undisturbed", model, data, chosen, epochs=1, batch_size=8)
    frequent = found.hyperparameters.model_copy(update={"save_every_steps": 2})
    found = found.model_copy(update={"hyperparameters": frequent})
    undisturbed = scene.train(scene.train_config("undisturbed", data, chosen, found))
    config = scene.train_config("disturbed", data, chosen, found)

    signal_after_a_save(scene, config, signal.SIGKILL)
    begin = time.perf_counter()
    code, output = signal_after_a_save(scene, config, signal.SIGTERM)
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


def signal_after_a_save(
    scene: Scene,
    config: TrainConfig,
    number: signal.Signals,
    send: Callable[["subprocess.Popen[str]", signal.Signals], None] = subprocess.Popen.send_signal,
) -> tuple[int, str]:
    """Start the run, send a signal after its next periodic save, and return exit code and log."""
    process = scene.start(config)
    lines: list[str] = []
    sent = False
    if process.stdout is None:
        raise GPUCheckFailed("the process has no output")
    for line in process.stdout:
        lines.append(line)
        if not sent and any(message.startswith("saved the state") for message in messages(line)):
            send(process, number)
            sent = True
    return process.wait(), "".join(lines)
