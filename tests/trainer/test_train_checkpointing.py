# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing: less memory, and the same run."""

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted
from tests.methods import sampled
from tests.trainer.workbench import ROWS, Sheet, Undisturbed, Workbench, elsewhere

METHODS = {"LoRA": Method(lora=LoRA(r=4, alpha=8, dropout=0.1)), "Full": Method(type="Full")}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(bench: Workbench, method: str, checkpointing: bool = True) -> TrainConfig:
    return bench.train_config(
        dataset=bench.dataset(ROWS, ROWS[:5]), method=METHODS[method], gradient_checkpointing=checkpointing
    )


@pytest.mark.parametrize("method", METHODS)
def test_weights_and_losses_are_the_same_to_the_bit(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    checkpointed = undisturbed(config_for(bench, method))

    assert checkpointed == undisturbed(config_for(bench, method, checkpointing=False))


@pytest.mark.parametrize("method", sampled(METHODS, "LoRA"))
def test_a_run_stopped_at_steps_ends_with_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method)

    for step in (1, 3):
        with pytest.raises(Preempted):
            bench.train(config, Sheet(stop_at=frozenset({step})))

    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 2})


def kept_bytes(bench: Workbench, checkpointing: bool) -> int:
    """The tensors that all forward passes of one step keep for the backward pass."""
    rows = [Row.pair(row.messages[0].content, "ship " * 20) for row in ROWS[:4]]
    config = bench.train_config(
        dataset=bench.dataset(rows),
        rows=4,
        epochs=1,
        batch_size=4,
        gradient_checkpointing=checkpointing,
    )
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        bench.train(config)
    return sum(tensor.numel() * tensor.element_size() for tensor in kept.values())


def test_less_is_kept_for_the_backward_pass(bench: Workbench) -> None:
    plain, checkpointed = elsewhere(bench, "plain"), elsewhere(bench, "checkpointed")

    assert kept_bytes(checkpointed, checkpointing=True) < 0.7 * kept_bytes(plain, checkpointing=False)
