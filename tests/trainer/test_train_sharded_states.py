# SPDX-License-Identifier: Apache-2.0
"""States of several processes: written in the background, and read by any number of processes."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.train import trainer
from tests.trainer.interruptions import LAST_FILE, Interruption
from tests.trainer.test_train_distributed import Pods, pods
from tests.trainer.test_train_on_a_gpu import train_as_on_a_gpu
from tests.trainer.workbench import RUN, Workbench, elsewhere, weights


@dataclass(frozen=True)
class InBackground:
    """Trains as on a GPU, where states are copied and then written in the background."""

    interruption: Interruption | None = None

    def __call__(self) -> None:
        train_as_on_a_gpu()
        trainer.COPIES_ON_CPU = True
        if self.interruption is not None:
            self.interruption()


def state(pods: Pods, step: int) -> Path:
    return pods.bench.store.run_folder(RUN, "train").path / "state" / f"step-{step}"


@pytest.mark.parametrize(
    ("method", "rank", "file"), [("LoRA", 0, LAST_FILE), ("Full", 1, "-of-00002.safetensors")]
)
def test_a_process_killed_in_a_save_in_the_background_costs_that_state_only(
    tmp_path: Path, method: str, rank: int, file: str
) -> None:
    with pods(elsewhere(Workbench(tmp_path), "undisturbed").root, method=method) as undisturbed:
        assert [each.code for each in undisturbed.run(InBackground())] == [ExitCode.OK] * 2
    with pods(tmp_path, method=method) as two:
        killed = InBackground(Interruption("killed in a save", 4, file=file))
        first = [two.start(each, killed if each == rank else InBackground()) for each in range(2)]
        codes = [each.finish().code for each in first]
        assert codes[rank] == -signal.SIGKILL
        assert codes[1 - rank] == ExitCode.PEER_LOST
        assert {"step-2", "step-4"}.intersection(two.bench.states(two.config)) == {"step-2"}

        ended = two.run(InBackground())

        assert [each.code for each in ended] == [ExitCode.OK] * 2, ended[1].logs
        assert "resuming after step 2 of 6" in ended[0].messages
        assert two.result == undisturbed.result.model_copy(update={"restarts": 1})


@pytest.mark.parametrize(("method", "sharding"), [("Full", {}), ("LoRA", {"sharded": True})])
def test_a_state_is_read_by_another_number_of_processes(
    tmp_path: Path, method: str, sharding: dict[str, bool]
) -> None:
    settings: dict[str, Any] = {"dropout": 0, "method": method, "settings": {"epochs": 3, **sharding}}
    alone = elsewhere(Workbench(tmp_path), "alone")
    expected = alone.train(Pods(alone, **settings).split(1))
    with pods(tmp_path, **settings) as run:
        for processes, resumed in ((2, None), (1, 2), (4, 4)):
            config = run.split(processes)
            stop = Interruption("asked to stop", 2) if processes < 4 else None
            started = [run.start(rank, stop, config) for rank in range(processes)]
            ended = [each.finish() for each in started]

            code = ExitCode.OK if stop is None else ExitCode.PREEMPTED_SAVED
            assert [each.code for each in ended] == [code] * processes, ended[-1].logs
            assert (f"resuming after step {resumed} of 6" in ended[0].messages) == (resumed is not None)
        assert run.result.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        assert run.result.tokens == expected.tokens
        mine = weights(run.bench.checkpoint(run.result.checkpoints[-1]))

    torch.testing.assert_close(
        mine, weights(alone.checkpoint(expected.checkpoints[-1])), rtol=1e-3, atol=1e-5
    )
