# SPDX-License-Identifier: Apache-2.0
"""States of several processes: written in the background, and read by any number of processes."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.contract.outcomes import ExitCode
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.train.parallel import fsdp
from finetune_trainer.train.states.layout import LEDGER, SHARDED_LEDGER
from finetune_trainer.train.states.tensorfiles import Rows, TensorFiles
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
        fsdp.COPIES_ON_CPU = True
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


def as_the_first_release(folder: Path) -> None:
    """Rewrite a sharded state in the layout of the first release: whole tensors, with the model's names."""
    files = TensorFiles.below(folder)
    tensors = {name: torch.empty(files.shape(name), dtype=files.dtype(name)) for name in files.names}
    for name, tensor in tensors.items():
        files.read(name, Rows(tensor))
    groups = json.loads((folder / "optimizer.json").read_text())
    optimizer = {
        name: {
            key.rpartition(".")[2]: tensor
            for key, tensor in tensors.items()
            if key.rpartition(".")[0] == f"optimizer.{name}"
        }
        for group in groups
        for name in group["params"]
    }
    for path in folder.glob("shard-*"):
        path.unlink()
    model = {name.removeprefix("model."): each for name, each in tensors.items() if name.startswith("model.")}
    save_file(model, folder / "model.safetensors", metadata={"format": "pt"})
    torch.save({"state": optimizer, "param_groups": groups}, folder / "optimizer.pt")
    (folder / "optimizer.json").unlink()
    (folder / SHARDED_LEDGER).rename(folder / LEDGER)
    (folder / MANIFEST_NAME).write_bytes(Manifest.of(folder).to_bytes())


def test_a_state_of_the_first_release_is_resumed_exactly(tmp_path: Path) -> None:
    with pods(elsewhere(Workbench(tmp_path), "undisturbed").root, method="Full") as undisturbed:
        assert [each.code for each in undisturbed.run()] == [ExitCode.OK] * 2
    with pods(tmp_path, method="Full") as two:
        stop = Interruption("asked to stop", 3)
        assert [each.code for each in two.run(stop)] == [ExitCode.PREEMPTED_SAVED] * 2
        as_the_first_release(state(two, 3))

        ended = two.run()

        assert [each.code for each in ended] == [ExitCode.OK] * 2, ended[1].logs
        assert "resuming after step 3 of 6" in ended[0].messages
        assert two.result == undisturbed.result.model_copy(update={"restarts": 1})
