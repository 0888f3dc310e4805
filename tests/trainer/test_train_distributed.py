# SPDX-License-Identifier: Apache-2.0
"""Several processes train a run like a single process, also when one of them is interrupted."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import NODE_RANK_ENV
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.distributed.process_group import PORT_ENV
from finetune_trainer.entrypoint import process
from finetune_trainer.rows import Row
from finetune_trainer.train import model_setup, session, stage, trainer
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.parallel.tensor_files import Rows, TensorFiles
from finetune_trainer.train.state_folders import is_sharded
from tests.methods import method_of
from tests.trainer.processes import (
    THREADS_ENV,
    Ended,
    Process,
    start,
    start_fresh,
    without_launcher,
)
from tests.trainer.test_train_watchdog import Blocks
from tests.trainer.workbench import OF_ONE_RUN, ROWS, RUN, Workbench, elsewhere, weights
from tools.cluster.layout import free_port
from tools.models import tiny

ONE_THREAD = {THREADS_ENV: "1"}
"""Limit for two processes that share the cores of a small machine."""


@dataclass(frozen=True)
class PublishesOnSignal:
    """Makes a process wait for a file before it publishes its checkpoints."""

    signal_file: Path

    def __call__(self) -> None:
        publish = vars(stage)["publish_checkpoints"]

        def when_told(*arguments: Any, **settings: Any) -> Any:
            print('{"message": "publishing"}', flush=True)
            while not self.signal_file.exists():
                time.sleep(0.01)
            return publish(*arguments, **settings)

        vars(stage)["publish_checkpoints"] = when_told


def show_gradients() -> None:
    """Disable clipping, and keep the state that has the means of the gradients."""
    trainer.MAX_GRADIENT_NORM = 1e9  # type: ignore[misc]  # in a process of its own
    process._remove_states = lambda *_: None


def have_room_for_one_row() -> None:
    """Exhaust memory for larger batches."""

    def before(model: torch.nn.Module, _: object, inputs: dict[str, torch.Tensor]) -> None:
        rows = (inputs["position_ids"] == 0).sum() if "position_ids" in inputs else len(inputs["input_ids"])
        if model.training and rows > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load(*arguments: Any) -> Trainable:
        model = model_setup.trainable_model(*arguments)
        model.register_forward_pre_hook(before, with_kwargs=True)
        return model

    vars(session)["trainable_model"] = load


KEY = bytes(range(32))


@dataclass
class Pods:
    """The pods of one run, one process each, over loopback."""

    bench: Workbench
    dropout: float = 0.1
    method: str = "LoRA"
    dora: bool = False
    base: Path | None = None
    """Folder of the base model; None for the tiny one."""
    rows: Sequence[Row] = ROWS[:11]
    accumulation: int = 1
    """Number of batches of 2 rows that each of two processes computes per step."""
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    started: list[Process] = field(default_factory=list)

    @property
    def config(self) -> TrainConfig:
        return self.together(nodes=2, coordinator="localhost", peer_key_path=str(self.key))

    @property
    def key(self) -> Path:
        """The file of the run's Secret, as each pod mounts it."""
        path = self.bench.root / "peer-key"
        path.write_bytes(KEY)
        return path

    def together(self, **places: Any) -> TrainConfig:
        return self._config({"processes": 2}).model_copy(update=places)

    def alone(self) -> TrainConfig:
        """The same steps in a single process."""
        return self._config({})

    def start(
        self, rank: int, arm: Callable[[], None] | None = None, config: TrainConfig | None = None
    ) -> Process:
        used = config or self.config
        environ = {
            **ONE_THREAD,
            **without_launcher(used.nodes * used.devices),
            NODE_RANK_ENV: str(rank),
            PORT_ENV: str(self.port),
        }
        self.started.append(start(used, arm=arm, environ=environ))
        return self.started[-1]

    def start_launcher(self, rank: int) -> Process:
        """A pod as the operator makes it: a launcher with a training process of its own."""
        environ = {**ONE_THREAD, NODE_RANK_ENV: str(rank), PORT_ENV: str(self.port)}
        self.started.append(start_fresh(self.config, environ=environ))
        return self.started[-1]

    def start_devices(self) -> Process:
        """One pod that starts a process for each of two devices with a fresh interpreter."""
        environ = {**ONE_THREAD, PORT_ENV: str(self.port)}
        self.started.append(start_fresh(self.together(devices=2), environ=environ))
        return self.started[-1]

    def run(self, arm: Callable[[], None] | None = None) -> list[Ended]:
        return [each.finish() for each in [self.start(rank, arm) for rank in range(2)]]

    @property
    def result(self) -> TrainResult:
        result = self.bench.store.read_result(RUN, "train")
        assert result is not None
        assert result.train is not None
        return result.train.model_copy(update=OF_ONE_RUN)

    def split(self, processes: int) -> TrainConfig:
        """The same steps in one, two or four processes."""
        config = self._config({"batch_size": 8, "processes": processes})
        if processes == 1:
            return config
        update = {"nodes": processes, "coordinator": "localhost", "peer_key_path": str(self.key)}
        return config.model_copy(update=update)

    def _config(self, settings: dict[str, Any]) -> TrainConfig:
        lora = LoRA(r=4, alpha=8, dropout=self.dropout, dora=self.dora)
        method = Method(type="Full") if self.method == "Full" else method_of(self.method, lora=lora)
        config = self.bench.train_config(
            self.bench.model(self.base or tiny()),
            self.bench.dataset(self.rows, self.rows[:5]),
            method=method,
            rows=len(self.rows),
            **{"batch_size": 4 * self.accumulation, "max_batch_rows": 2, **settings, **self.settings},
        )
        return config.model_copy(update={"metrics_port": free_port()})


def gradients(bench: Workbench, step: int) -> list[torch.Tensor]:
    """Running means of the gradients in the state after a step, in the optimizer's order."""
    folder = bench.store.run_folder(RUN, "train").path / "state" / f"step-{step}"
    if is_sharded(folder):
        files = TensorFiles.below(folder)
        stored = [
            f"optimizer.{name}.exp_avg"
            for group in json.loads((folder / "optimizer.json").read_text())
            for name in group["params"]
        ]
        means = [torch.empty(files.shape(name)) for name in stored]
        for name, mean in zip(stored, means, strict=True):
            files.read(name, Rows(mean))
        return means
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    parameters = [name for group in optimizer["param_groups"] for name in group["params"]]
    return [optimizer["state"][name]["exp_avg"] for name in parameters]


@contextmanager
def pods(root: Path, **settings: Any) -> Iterator[Pods]:
    made = Pods(Workbench(root), **settings)
    try:
        yield made
    finally:
        for each in made.started:
            each.kill()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Pods]:
    """A longer run, with time to interrupt it."""
    with pods(tmp_path, settings={"epochs": 10}) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    with pods(tmp_path_factory.mktemp("undisturbed"), settings={"epochs": 10}) as made:
        assert [ended.code for ended in made.run()] == [ExitCode.OK, ExitCode.OK]
        return made.result


@pytest.mark.parametrize(
    ("method", "sharded", "accumulation"), [("LoRA", None, 2), ("Full", None, 1), ("Full", False, 1)]
)
def test_two_processes_train_as_one_with_the_same_rows_a_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    sharded: bool | None,
    accumulation: int,
) -> None:
    monkeypatch.setattr(trainer, "MAX_GRADIENT_NORM", 1e9)
    settings: dict[str, Any] = {
        "dropout": 0,
        "method": method,
        "accumulation": accumulation,
        "settings": {"sharded": sharded},
    }
    one = elsewhere(Workbench(tmp_path), "one")
    expected = one.train(Pods(one, **settings).alone())
    with pods(tmp_path, **settings) as two:
        leader, other = two.run(show_gradients)

    assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
    is_replica = method == "LoRA" or sharded is False
    folder = two.bench.store.run_folder(RUN, "train").path / "state" / f"step-{expected.steps}"
    assert is_sharded(folder) is not is_replica
    result = two.result
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-6)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-6)
        together, alone = weights(two.bench.checkpoint(mine)), weights(one.checkpoint(theirs))
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    # Adam and clipping hide gradients that are too small or too large.
    torch.testing.assert_close(
        gradients(two.bench, result.steps), gradients(one, result.steps), rtol=1e-3, atol=1e-7
    )
    assert any("termination message" in line["message"] for line in leader.logs)
    assert not any("termination message" in line["message"] for line in other.logs)


def test_when_one_is_killed_the_other_ends_and_both_go_on(two: Pods, undisturbed: TrainResult) -> None:
    first = [two.start(rank) for rank in range(2)]
    first[0].read_until("saved the state after step 4")
    first[1].kill()
    survivor = first[0].finish()

    assert survivor.code == ExitCode.PEER_LOST, survivor.logs
    assert [ended.code for ended in two.run()] == [ExitCode.OK, ExitCode.OK]
    assert two.result == undisturbed.model_copy(update={"restarts": 1})


def test_a_signal_to_one_makes_all_save_once(two: Pods, undisturbed: TrainResult) -> None:
    two.settings["save_every_steps"] = 100
    first = [two.start(rank) for rank in range(2)]
    first[1].read_until("step 1 of")
    first[1].send_signal(signal.SIGTERM)

    ended = [each.finish() for each in first]

    assert [one.code for one in ended] == [ExitCode.PREEMPTED_SAVED] * 2, [one.logs for one in ended]
    (state,) = two.bench.states(two.config)
    assert 1 <= int(state.removeprefix("step-")) < undisturbed.steps
    late = two.start(1)
    late.read_until("waiting: rank 0 at localhost")
    leader, other = two.start(0).finish(), late.finish()
    assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
    assert two.result == undisturbed.model_copy(update={"restarts": 1})


def test_what_is_published_needs_the_leader_only(two: Pods, undisturbed: TrainResult) -> None:
    signal_file = two.bench.root / "publish"
    leader, other = two.start(0, PublishesOnSignal(signal_file)), two.start(1)
    leader.read_until("publishing")
    other.read_until("waiting until rank 0 has written the result")
    other.kill()
    again = two.start(1)
    again.read_until("waiting:")
    signal_file.touch()

    assert leader.finish().code == ExitCode.OK
    assert again.finish().code == ExitCode.OK
    assert two.result == undisturbed
    assert two.start(1).finish().code == ExitCode.OK


def test_a_stranger_who_reaches_the_leader_is_refused_and_the_run_goes_on(tmp_path: Path) -> None:
    with pods(tmp_path) as two:
        leader = two.start(0)
        leader.read_until("waiting: 1 of 2 processes have not connected")
        with socket.create_connection(("127.0.0.1", two.port), 60) as stranger:
            stranger.sendall(b"hello/1" * 32)
            assert len(received(stranger)) == 32  # the challenge, and nothing after it
        leader.read_until("the other process does not have the key of this run")
        ended = [two.start(1).finish(), leader.finish()]

    assert [one.code for one in ended] == [ExitCode.OK, ExitCode.OK], ended[1].logs


def received(connection: socket.socket) -> bytes:
    """Read until the other end closes the connection."""
    whole = b""
    try:
        while part := connection.recv(1024):
            whole += part
    except ConnectionResetError:  # the other end did not read what was sent
        pass
    return whole


@pytest.mark.full
def test_when_the_leader_is_lost_while_it_publishes_it_publishes_again(
    two: Pods, undisturbed: TrainResult
) -> None:
    never = two.bench.root / "never"
    leader, other = two.start(0, PublishesOnSignal(never)), two.start(1)
    other.read_until("waiting until rank 0 has written the result")
    leader.kill()

    assert other.finish().code == ExitCode.PEER_LOST
    assert [ended.code for ended in two.run()] == [ExitCode.OK, ExitCode.OK]
    assert two.result == undisturbed.model_copy(update={"restarts": 1})


def test_a_pod_with_two_devices_saves_when_it_is_stopped(two: Pods, undisturbed: TrainResult) -> None:
    pod = two.start_devices()
    pod.read_until("saved the state after step 4")
    pod.send_signal(signal.SIGTERM)

    stopped = pod.finish()

    assert stopped.code == ExitCode.PREEMPTED_SAVED, stopped.logs
    assert two.start_devices().finish().code == ExitCode.OK
    assert two.result.steps == undisturbed.steps
    assert two.result.train_loss == pytest.approx(undisturbed.train_loss, rel=1e-5)


def test_the_failure_of_one_is_the_runs_and_the_others_lost_a_peer(two: Pods) -> None:
    broken = two.config.model_copy(update={"dataset": f"sha256:{'0' * 64}"})
    leader = two.start(0)
    other = two.start(1, config=broken).finish()

    assert leader.finish().code == ExitCode.PEER_LOST
    assert other.code == ExitCode.BAD_CONFIG
    assert other.result.reason == "ArtifactNotFound"


@pytest.mark.full
@pytest.mark.parametrize(("silent", "code"), [(True, ExitCode.PEER_LOST), (False, 128 + signal.SIGABRT)])
def test_an_abort_of_a_pods_only_process_counts_as_a_failure_unless_a_peer_was_silent(
    two: Pods, silent: bool, code: int
) -> None:
    leader, other = two.start_launcher(0), two.start(1)
    leader.read_until("saved the state after step 4")
    if silent:
        other.send_signal(signal.SIGSTOP)
        leader.read_until("rank 1 has sent no heartbeat for 15 seconds")
    (child,) = children_of(leader.pid)
    os.kill(child, signal.SIGABRT)

    assert leader.finish().code == code
    other.send_signal(signal.SIGCONT)
    assert other.finish().code == ExitCode.PEER_LOST


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.full
def test_where_one_has_too_little_memory_all_go_on_with_smaller_batches(tmp_path: Path) -> None:
    with pods(tmp_path) as two:
        leader, other = two.start(0), two.start(1, have_room_for_one_row)
        assert [each.finish().code for each in (leader, other)] == [ExitCode.PEER_LOST] * 2

        leader, other = two.start(0), two.start(1, have_room_for_one_row)

        assert [each.finish().code for each in (leader, other)] == [ExitCode.OK] * 2
        assert two.result.max_batch_rows == 1
        assert two.result.steps == two.config.hyperparameters.total_steps


@pytest.mark.full
def test_where_a_step_hangs_one_fails_by_it(tmp_path: Path) -> None:
    with pods(tmp_path) as two:
        hasty = two.config.model_copy(update={"step_timeout_seconds": 25})
        leader, other = (
            two.start(0, config=hasty),
            two.start(1, Blocks("forward", Path("/dev/null")), config=hasty),
        )

        codes = {each.finish().code for each in (leader, other)}

    assert codes == {ExitCode.INTERNAL, ExitCode.PEER_LOST}
