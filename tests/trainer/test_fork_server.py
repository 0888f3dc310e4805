# SPDX-License-Identifier: Apache-2.0
"""Stages of local runs that are forked from a process that has imported PyTorch."""

import fcntl
import json
import pickle
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from finetune_client.local.processes import (
    CUDA_DEVICES_ENV,
    ChildProcess,
    ContainerProcess,
    ForkedProcess,
    Launch,
    StageProcesses,
    end_left_processes,
)
from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.environment import TERMINATION_MESSAGE_ENV
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode
from tests.trainer.workbench import Workbench
from tests.waiting import eventually

SECONDS = 120
INVALID = '{"stage": "train"}'


class Containers:
    """Containers in a folder, started as a local run starts them."""

    def __init__(self, folder: Path, start: StageProcesses) -> None:
        self.folder = folder
        self.start = start
        self._number = 0

    def launch(
        self, config: Contract | str, stage: str = "train", environment: Mapping[str, str] | None = None
    ) -> Launch:
        self._number += 1
        name = f"{stage}-{self._number}"
        path = self.folder / f"{name}.json"
        path.write_text(config if isinstance(config, str) else config.to_json())
        return Launch(
            pod=name,
            container=stage,
            stage=stage,
            config=path,
            environment={
                TERMINATION_MESSAGE_ENV: str(path.with_suffix(".message")),
                CUDA_DEVICES_ENV: "",
                **(environment or {}),
            },
            log=self.folder / "logs" / f"{name}.log",
            lock=self.folder / "locks" / f"{name}.lock",
        )


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with closing(StageProcesses()) as start:
        yield Containers(tmp_path_factory.mktemp("containers"), start)


def wait(process: ContainerProcess) -> int:
    """Wait for the exit code."""
    eventually("it ends", lambda: process.poll() is not None, SECONDS)
    code = process.poll()
    assert code is not None
    return code


def is_locked(launch: Launch) -> bool:
    with launch.lock.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def messages(launch: Launch) -> list[str]:
    return [json.loads(line)["message"] for line in launch.log.read_text().splitlines()]


def long_training(bench: Workbench) -> Contract:
    """A training that ends only by a signal."""
    return bench.train_config(epochs=100_000).model_copy(update={"run": uuid.uuid4().hex})


def test_signals_reach_it_before_it_is_forked(containers: Containers, bench: Workbench) -> None:
    saving, killed = (containers.launch(long_training(bench)) for _ in range(2))
    fresh = containers.launch(long_training(bench), environment={"OF_ITS_OWN": "1"})
    processes = [containers.start(each) for each in (saving, fresh, killed)]

    for each in processes[:2]:
        each.terminate()
    processes[2].kill()

    saved = ExitCode.PREEMPTED_SAVED
    assert [wait(each) for each in processes] == [saved, saved, 128 + signal.SIGKILL]
    assert not is_locked(killed)


def test_it_trains_as_a_process_of_its_own(containers: Containers, bench: Workbench) -> None:
    launch = containers.launch(bench.train_config())

    process = containers.start(launch)

    assert isinstance(process, ForkedProcess)
    assert wait(process) == ExitCode.OK
    result = StageResult.parse(Path(launch.environment[TERMINATION_MESSAGE_ENV]).read_text())
    assert result is not None
    assert result.train is not None
    assert not is_locked(launch)


def test_a_failure_has_the_code_and_log_of_a_new_interpreter(containers: Containers) -> None:
    forked, fresh = containers.launch(INVALID), containers.launch(INVALID, environment={"OF_ITS_OWN": "1"})

    processes = containers.start(forked), containers.start(fresh)

    assert [type(each) for each in processes] == [ForkedProcess, ChildProcess]
    assert [wait(each) for each in processes] == [ExitCode.BAD_CONFIG] * 2
    assert messages(forked) == messages(fresh)


def test_what_it_cannot_fork_gets_an_interpreter(containers: Containers) -> None:
    own = [
        containers.launch(INVALID, "prepare"),
        containers.launch(INVALID, environment={CUDA_DEVICES_ENV: "0"}),
        containers.launch(INVALID, environment={"HF_HOME": "elsewhere"}),
    ]
    processes = [containers.start(launch) for launch in own]
    assert [type(each) for each in processes] == [ChildProcess] * len(own)
    assert [wait(each) for each in processes] == [ExitCode.BAD_CONFIG] * len(own)


KILLED = """
import os, pathlib, pickle, signal, sys
from finetune_client.local.processes import Launch, StageProcesses
launch = pickle.loads(bytes.fromhex(sys.argv[1]))
StageProcesses()(launch)
while not launch.log.read_text():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stage_saves_after_its_program_was_killed(containers: Containers, bench: Workbench) -> None:
    launch = containers.launch(long_training(bench))
    subprocess.run([sys.executable, "-c", KILLED, pickle.dumps(launch).hex()], check=False)
    assert is_locked(launch)

    end_left_processes(launch.lock.parent)

    assert not launch.lock.exists()
    assert "stopped by a signal" in launch.log.read_text()


def test_a_stage_ends_with_its_server(containers: Containers, bench: Workbench) -> None:
    launch = containers.launch(long_training(bench))
    process = containers.start(launch)
    eventually("it trains", launch.log.read_text, SECONDS)

    containers.start.close()

    assert wait(process) == 128 + signal.SIGKILL
    eventually("its lock is free", lambda: not is_locked(launch), SECONDS)
