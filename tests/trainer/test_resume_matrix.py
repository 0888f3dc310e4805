# SPDX-License-Identifier: Apache-2.0
"""Every kind of run with every kind of interruption: bit-identical weights, or a refusal with the reason.

The moment is the third dimension. `make test` takes each pair of values of two dimensions once, `make
test-full` all combinations.
"""

import functools
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import NODE_RANK_ENV
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.rows import Row
from tests.trainer.interruptions import Interruption
from tests.trainer.processes import Ended, start, without_launcher
from tests.trainer.workbench import ROWS, Workbench

LORA: Final = Method(lora=LoRA(r=4, alpha=8, dropout=0.1))


@dataclass(frozen=True)
class Way:
    """A kind of run whose epochs have three steps."""

    rows: int
    method: Method = LORA
    batch_size: int = 1
    max_batch_rows: int | None = None
    nodes: int = 1


WAYS: Final = {
    "LoRA with dropout": Way(rows=3),
    "Full": Way(rows=3, method=Method(type="Full")),
    "packing": Way(rows=12, batch_size=4),
    "accumulation": Way(rows=12, batch_size=4, max_batch_rows=2),
    "uneven batches": Way(rows=12, batch_size=5, max_batch_rows=3),
    "two ranks": Way(rows=12, batch_size=5, max_batch_rows=2, nodes=2),
    "two ranks with parts of all weights": Way(
        rows=12, method=Method(type="Full"), batch_size=5, max_batch_rows=2, nodes=2
    ),
}


@dataclass(frozen=True)
class Moment:
    """The moment of an interruption: before a step, or before the state after it is saved."""

    step: int
    saved_step: int
    save_every_steps: int

    @property
    def newest(self) -> int:
        """The newest state before the step."""
        return (self.step - 1) // self.save_every_steps * self.save_every_steps


MOMENTS: Final = {
    "within an epoch": Moment(step=2, saved_step=2, save_every_steps=1),
    "at the end of an epoch": Moment(step=3, saved_step=3, save_every_steps=1),
    "long after the last state": Moment(step=6, saved_step=4, save_every_steps=2),
}


def weights_of_last_rank(state: Path) -> Path:
    """A sharded state has a file per rank."""
    return max(state.glob("*.safetensors"))


def truncate(state: Path) -> None:
    weights = weights_of_last_rank(state)
    weights.write_bytes(weights.read_bytes()[:-1])


def tamper(state: Path) -> None:
    """Change one byte; size and time of the file stay."""
    weights = weights_of_last_rank(state)
    before = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_optimizer(state: Path) -> None:
    (optimizer,) = state.glob("optimizer.*")
    optimizer.unlink()


@dataclass(frozen=True)
class Fault:
    """What happens to the pod, and afterwards to the newest state."""

    interruption: str
    damage: Callable[[Path], None] | None = None
    refused: bool = False
    """Whether the next pods get other rows."""

    @property
    def in_save(self) -> bool:
        return self.interruption in ("killed in a save", "killed before the rename")

    def resumed_step(self, moment: Moment) -> int:
        """The step that the next pods resume from; 0: they start from the base model."""
        if self.interruption == "asked to stop":
            return moment.step
        if self.in_save:
            return moment.saved_step - moment.save_every_steps
        return moment.newest - (moment.save_every_steps if self.damage else 0)


FAULTS: Final = {
    "SIGKILL in a step": Fault("killed in a step"),
    "SIGKILL in a save": Fault("killed in a save"),
    "SIGKILL before the rename": Fault("killed before the rename"),
    "SIGTERM": Fault("asked to stop"),
    "newest state truncated": Fault("killed in a step", truncate),
    "newest state tampered with": Fault("killed in a step", tamper),
    "newest state without its optimizer": Fault("killed in a step", remove_optimizer),
    "changed data": Fault("killed in a step", refused=True),
}


@dataclass(frozen=True)
class Site:
    """The store and the pods of one kind of run."""

    bench: Workbench
    way: Way

    def config(self, save_every_steps: int = 1, rows: Sequence[Row] = ROWS) -> TrainConfig:
        way = self.way
        config = self.bench.train_config(
            dataset=self.bench.dataset(rows[: way.rows], ROWS[:5]),
            rows=way.rows,
            method=way.method,
            batch_size=way.batch_size,
            max_batch_rows=way.max_batch_rows,
            save_every_steps=save_every_steps,
            processes=way.nodes,
        )
        coordinator = "127.0.0.1" if way.nodes > 1 else None
        return config.model_copy(update={"metrics_port": 0, "nodes": way.nodes, "coordinator": coordinator})

    def run(
        self, config: TrainConfig, interruption: Interruption | None = None, rank: int = 0
    ) -> list[Ended]:
        """Run all pods from start to end; interrupt that of `rank`."""
        with ExitStack() as running:
            pods = [
                running.enter_context(
                    start(
                        config,
                        arm=interruption if number == rank else None,
                        environ={NODE_RANK_ENV: str(number), **without_launcher(self.way.nodes)},
                    )
                )
                for number in range(self.way.nodes)
            ]
            return [each.finish() for each in pods]

    def finish(self, config: TrainConfig) -> tuple[TrainResult, list[str]]:
        """Resume a run to its end; its result, and the log of the first pod."""
        pods = self.run(config)
        assert [each.code for each in pods] == [ExitCode.OK] * len(pods), pods[0].messages[-5:]
        result = self.bench.store.read_result(config.run, "train")
        assert result is not None
        assert result.train is not None
        return result.train, pods[0].messages


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrainResult]:
    """The result of each kind of run without interruption."""

    @functools.cache
    def result(way: str) -> TrainResult:
        site = Site(Workbench(tmp_path_factory.mktemp("undisturbed")), WAYS[way])
        return site.finish(site.config())[0]

    return result


def _is_sampled(diagonal: int, moment: int) -> bool:
    """Every second pair of way and fault, with one moment, so that each of them meets all moments."""
    return diagonal % 2 == 0 and diagonal // 2 % len(MOMENTS) == moment


CELLS: Final = [
    pytest.param(
        way,
        fault,
        moment,
        id=f"{way}, {fault}, {moment}",
        marks=() if _is_sampled(i + j, k) else pytest.mark.full,
    )
    for (i, way), (j, fault), (k, moment) in product(enumerate(WAYS), enumerate(FAULTS), enumerate(MOMENTS))
]


@pytest.mark.parametrize(("way", "fault", "moment"), CELLS)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Callable[[str], TrainResult], way: str, fault: str, moment: str
) -> None:
    site, happens, when = Site(Workbench(tmp_path), WAYS[way]), FAULTS[fault], MOMENTS[moment]
    config = site.config(when.save_every_steps)
    step = when.saved_step if happens.in_save else when.step
    # Rank 0 saves for all processes.
    rank = 0 if happens.in_save else site.way.nodes - 1

    states = site.bench.store.run_folder(config.run, "train").path / "state"
    after = None if happens.in_save or not when.newest else states / f"step-{when.newest}"

    pods = site.run(config, Interruption(happens.interruption, step, after), rank)

    others = {each.code for each in pods if each is not pods[rank]}
    if happens.interruption == "asked to stop":
        assert {pods[rank].code, *others} == {ExitCode.PREEMPTED_SAVED}, pods[0].messages[-5:]
    else:
        assert pods[rank].code == -signal.SIGKILL, pods[rank].messages[-5:]
        assert others <= {ExitCode.PEER_LOST}
    if happens.damage is not None:
        happens.damage(states / f"step-{when.newest}")
    if happens.refused:
        assert_refused(site, site.config(when.save_every_steps, rows=ROWS[::-1]))

    result, messages = site.finish(config)

    expected = undisturbed(way)
    assert result.checkpoints == expected.checkpoints
    assert result.tokens == expected.tokens
    resumed = [line for line in messages if line.startswith("resuming after step")]
    step = happens.resumed_step(when)
    assert resumed == ([f"resuming after step {step} of 6"] if step else [])
    unused = f"/state/step-{when.newest} is ignored"
    assert any(unused in line for line in messages) == (happens.damage is not None)


def assert_refused(site: Site, config: TrainConfig) -> None:
    pods = site.run(config)

    assert ExitCode.BAD_CONFIG in {each.code for each in pods}
    lines = [line for each in pods for line in each.messages]
    (message,) = (line for line in lines if line.startswith("FingerprintMismatch"))
    assert not any(line.startswith("resuming after step") for line in lines)
    assert config.dataset in message
    assert "create a new FineTuneJob for a changed run" in message
