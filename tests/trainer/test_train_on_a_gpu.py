# SPDX-License-Identifier: Apache-2.0
"""Every method with a model as on a GPU: steps, validation, and resuming after a stop."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import distributed_c10d

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.methods import MethodType
from finetune_trainer.contract.outcomes import ExitCode
from finetune_trainer.train.callbacks.divergence import Divergence
from finetune_trainer.train.parallel import shardingconfig
from finetune_trainer.train.trainer import training_arguments
from tests.trainer import test_train_preference as preference
from tests.trainer.gpuwrapping import VARIABLE, as_a_gpu_trains, tiny_in_bfloat16
from tests.trainer.test_train_distributed import pods
from tests.trainer.test_train_resume import METHODS, preempted
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere

EVERY_METHOD = {
    "LoRA": METHODS["LoRA"],
    "DoRA": METHODS["DoRA"],
    "QLoRA": METHODS["QLoRA"],
    "Full": METHODS["Full"],
    **preference.METHODS,
}
CHECKPOINTED = ("LoRA", "DPO")
"""Methods with gradient checkpointing: some only, since float32 tests cover each method."""


def train_as_on_a_gpu() -> None:
    """Report whether gradients have more than 8 bits, and end this process if it unpickles an object."""
    os.environ[VARIABLE] = "bf16"

    def refuse(*_: object) -> None:
        raise AssertionError("an object of another process is unpickled")

    check = Divergence.before_update

    def checked(self: Divergence, step: int, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient = getattr(parameter.grad, "_local_tensor", parameter.grad)
                if gradient is not None and not torch.equal(gradient, gradient.bfloat16().float()):
                    print('{"message": "a gradient has more than 8 bits"}', flush=True)
        check(self, step, optimizer)

    vars(shardingconfig)["mixes_precision"] = lambda _: True
    vars(distributed_c10d)["_tensor_to_object"] = refuse
    Divergence.before_update = checked  # type: ignore[method-assign]


def config_for(bench: Workbench, method: str, **settings: Any) -> TrainConfig:
    rows = preference.rows_for(method) if method in preference.METHODS else ROWS
    return bench.train_config(
        bench.model(tiny_in_bfloat16()),
        bench.dataset(rows, rows[:5]),
        method=EVERY_METHOD[method],
        gradient_checkpointing=method in CHECKPOINTED,
        **settings,
    )


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_a_run_learns_and_goes_on_exactly_after_a_stop(tmp_path: Path, method: str) -> None:
    bench, sheet = Workbench(tmp_path), Sheet()
    other = elsewhere(bench, "uninterrupted")
    with as_a_gpu_trains():
        straight = other.train(config_for(other, method, epochs=3), sheet)
        config = config_for(bench, method, epochs=3)
        preempted(bench, config, 4)

        assert bench.train(config) == straight.model_copy(update={"restarts": 1})
    assert sheet.seen[-1].loss < sheet.seen[0].loss  # type: ignore[operator]
    assert straight.validation_loss is not None


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("LoRA", {}),
        ("Full", {"max_batch_tokens": 24}),
        ("KTO", {}),
        pytest.param("DPO", {"gradient_checkpointing": True}, marks=pytest.mark.full),
        pytest.param("ORPO", {}, marks=pytest.mark.full),
    ],
)
def test_two_processes_sum_gradients_in_float32_and_unpickle_nothing(
    tmp_path: Path, method: MethodType, settings: dict[str, Any]
) -> None:
    rows = preference.rows_for(method)[:9] if method in preference.METHODS else ROWS[:11]
    with pods(tmp_path, dropout=0, method=method, rows=rows, settings=settings) as two:
        leader, other = two.run(train_as_on_a_gpu)

    assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
    assert any("more than 8 bits" in line["message"] for line in leader.logs)


@pytest.mark.full
def test_a_sharded_run_goes_on_exactly_after_a_process_is_killed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"method": "Full", "settings": {"epochs": 4}}
    other = elsewhere(Workbench(tmp_path), "uninterrupted")
    with pods(other.root, **settings) as straight:
        assert [ended.code for ended in straight.run(train_as_on_a_gpu)] == [ExitCode.OK] * 2
        expected = straight.result
    with pods(tmp_path, **settings) as two:
        leader, killed = (two.start(rank, train_as_on_a_gpu) for rank in range(2))
        leader.read_until("saved the state after step 4")
        killed.kill()
        assert leader.finish().code == ExitCode.PEER_LOST

        assert [ended.code for ended in two.run(train_as_on_a_gpu)] == [ExitCode.OK] * 2
        assert two.result == expected.model_copy(update={"restarts": 1})


def test_a_process_that_sees_several_gpus_uses_one(tmp_path: Path) -> None:
    hyperparameters = Workbench(tmp_path).train_config().hyperparameters

    chosen: Any = training_arguments(SimpleNamespace, hyperparameters, torch.device("cuda"), tmp_path)  # type: ignore[type-var]

    assert chosen._n_gpu == 1
    assert chosen.bf16
