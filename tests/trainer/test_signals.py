# SPDX-License-Identifier: Apache-2.0
"""SIGTERM during the whole life of process 1 of a container."""

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.model.bundle import read_base_bundle
from finetune_trainer.runtime import signals
from tests.trainer.processes import TIMEOUT_SECONDS, Process, start, start_fresh
from tests.trainer.serve.endpoint import serve_config
from tests.trainer.workbench import OWNER, ROWS, RUN, Workbench
from tests.waiting import eventually
from tools.models import tiny

ROOT: Final = Path(__file__).parents[2]
LATER_THAN_ANY_TEST_SECONDS: Final = 1000.0
SOON_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Hangs:
    """Makes a function of the trainer hang."""

    function: str
    how: Callable[[], None]
    max_exit_seconds: float = LATER_THAN_ANY_TEST_SECONDS

    def __call__(self) -> None:
        module, _, name = self.function.rpartition(".")
        setattr(importlib.import_module(f"finetune_trainer.{module}"), name, self._hang)
        signals.MAX_EXIT_SECONDS = self.max_exit_seconds  # type: ignore[misc]  # in a process of its own

    def _hang(self, *_arguments: object, **_settings: object) -> None:
        print('{"message": "hanging", "level": "info"}', flush=True)
        self.how()


def wait_for_ever() -> None:
    threading.Event().wait()


def never_return() -> None:
    """Block in a call, without returning to handle a signal."""
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_of(stage: str, bench: Workbench) -> Contract:
    base, dataset = bench.model(), bench.dataset(ROWS, ROWS[:2], ROWS[:2])
    match stage:
        case "train":
            return bench.train_config(base, dataset)
        case "devices":
            config = bench.train_config(base, dataset, processes=2)
            return config.model_copy(update={"devices": 2})
        case "preflight":
            return bench.preflight_config(tiny(), dataset)
        case "evaluate":
            with bench.store.staging() as staging:
                shutil.copytree(tiny(), staging, dirs_exist_ok=True)
                read_base_bundle(tiny()).write(staging)
                checkpoint = bench.store.publish("checkpoints", staging)
            return EvaluateConfig(
                owner=OWNER,
                run=RUN,
                store=bench.store_config,
                base_model=base,
                dataset=dataset,
                checkpoint=checkpoint,
                checkpoint_type="Full",
                max_sequence_length=64,
            )
        case "fetch":
            return FetchConfig(
                owner=OWNER,
                store=bench.store_config,
                destination=str(bench.root / "models"),
                items=(FetchItem(artifact=ArtifactRef(kind="models", digest=base), folder="base"),),
            )
        case _:
            return serve_config(bench.root)


Begin = Callable[..., Process]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start processes as process 1 of a container, and kill them at the end."""
    with ExitStack() as started:

        def begin(*arguments: Any, how: Begin = start, **settings: Any) -> Process:
            return started.enter_context(how(*arguments, is_first=True, **settings))

        yield begin


def handles_sigterm(process: Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def has_loaded(process: Process, library: str) -> bool:
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_process_that_has_done_nothing_ends_as_one_that_has_saved_all_it_did() -> None:
    assert ExitCode(signals.EXIT_CODE_NOTHING_DONE) is ExitCode.PREEMPTED_SAVED


def test_nothing_is_imported_before_the_handler_is_set_but_the_handler() -> None:
    listing = "import sys, finetune_trainer.__main__; print(*sorted(sys.modules), sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    ours = [name for name in ran.stdout.split() if name.startswith("finetune_trainer")]
    assert ours == [
        "finetune_trainer",
        "finetune_trainer.__main__",
        "finetune_trainer.runtime",
        "finetune_trainer.runtime.signals",
    ]


def entrypoint(image: str) -> list[str]:
    dockerfile = (ROOT / image / "Dockerfile").read_text()
    found: list[str] = json.loads(dockerfile.rpartition("ENTRYPOINT ")[2])
    return found


def blocked_and_pending() -> None:
    """Act as a process 1 that was started with SIGTERM blocked, and got one before Python started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("module", "code"), [("finetune_trainer", 20), ("finetune_operator", 143)])
def test_a_signal_from_before_the_first_line_of_python_ends_the_process(module: str, code: int) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, CONFIG_ENV: "{}"},
        stdout=subprocess.DEVNULL,
        timeout=TIMEOUT_SECONDS,
        check=False,
        preexec_fn=blocked_and_pending,
    )
    assert ended.returncode == code


@pytest.mark.parametrize("image", ["trainer_image", "operator"])
def test_an_image_starts_python_with_the_signals_blocked(image: str) -> None:
    command = entrypoint(image)
    shown = "import signal; print(*map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    python = [sys.executable, "-c", shown]
    started = [*command[: command.index("python3")], *python]
    output = subprocess.run(started, capture_output=True, text=True, check=True).stdout
    assert {int(number) for number in output.split()} == {signal.SIGTERM, signal.SIGINT}


@pytest.mark.parametrize("module", ["finetune_trainer", "finetune_operator"])
def test_a_signal_is_handled_before_anything_is_imported_that_takes_time(begin: Begin, module: str) -> None:
    process = begin("{}", "-m", module, how=start_fresh)
    eventually("a handler", lambda: handles_sigterm(process), TIMEOUT_SECONDS, pause=0.001)
    imported = has_loaded(process, "pydantic_core")
    process.send_signal(signal.SIGTERM)

    assert process.wait() == (20 if module == "finetune_trainer" else 143)
    assert not imported


@pytest.mark.parametrize(
    ("stage", "code"), [("train", 20), ("devices", 20), ("evaluate", 20), ("serve", 143), ("fetch", 143)]
)
def test_a_signal_ends_a_process_that_still_imports(
    begin: Begin, bench: Workbench, stage: str, code: int
) -> None:
    process = begin(config_of(stage, bench), how=start_fresh)
    eventually("imports", lambda: has_loaded(process, "pydantic_core"), TIMEOUT_SECONDS)
    process.send_signal(signal.SIGTERM)

    assert process.finish().code in (code, ExitCode.PREEMPTED_SAVED)


@pytest.mark.parametrize(
    ("stage", "hanging", "code"),
    [
        ("train", "train.session.trainable_model", 20),
        ("evaluate", "evaluate.runner.load_placed", 20),
        ("preflight", "preflight.stage.load_tokenizer", 20),
        ("serve", "serve.loading.load", 0),
        ("fetch", "serve.fetch.copy_artifact", 143),
    ],
)
def test_a_signal_ends_a_process_that_loads_what_it_needs(
    begin: Begin,
    bench: Workbench,
    stage: str,
    hanging: str,
    code: int,
) -> None:
    process = begin(config_of(stage, bench), arm=Hangs(hanging, wait_for_ever))
    process.read_until("hanging")
    process.send_signal(signal.SIGTERM)

    assert process.finish().code == code


def test_a_signal_ends_a_process_that_hangs_in_a_call_with_nothing_to_save(
    begin: Begin, bench: Workbench
) -> None:
    hangs = Hangs("train.session.trainable_model", never_return, SOON_SECONDS)
    process = begin(config_of("train", bench), arm=hangs)
    process.read_until("hanging")
    process.send_signal(signal.SIGTERM)

    assert process.finish().code == ExitCode.PREEMPTED_SAVED


def test_a_signal_while_checkpoints_are_published_leaves_that_to_the_next_pod(
    begin: Begin, bench: Workbench
) -> None:
    config = bench.train_config()
    process = begin(config, arm=Hangs("train.stage.publish_checkpoints", wait_for_ever))
    process.read_until("hanging")
    process.send_signal(signal.SIGTERM)

    assert process.finish().code == ExitCode.PREEMPTED_SAVED
    assert bench.train(config).restarts == 1


def test_a_launcher_hands_a_signal_on_to_processes_that_only_start(begin: Begin, bench: Workbench) -> None:
    process = begin(config_of("devices", bench), how=start_fresh)
    eventually("its processes", lambda: children(process), TIMEOUT_SECONDS)
    process.send_signal(signal.SIGTERM)

    assert process.finish().code == ExitCode.PREEMPTED_SAVED


def children(process: Process) -> list[str]:
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_the_step_in_which_a_signal_arrives_is_the_last() -> None:
    program = (
        "import signal, sys\n"
        "from finetune_trainer.runtime.signals import Stop\n"
        "sys.setswitchinterval(1000)\n"  # no other thread runs before the next line
        "stop = Stop()\n"
        "with stop.listening():\n"
        "    stop.hold()\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print(stop.is_set())\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )

    assert (ended.stdout, ended.stderr) == ("True\n", "")
