# SPDX-License-Identifier: Apache-2.0
"""What the reference model of DPO and KTO says is computed once before training, and kept with the tokens."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.model.loading import load_base
from finetune_trainer.preflight.estimate.fake_step import Precision, StepShape, measure_step
from finetune_trainer.tokens.encoding import AnswerEncoder
from finetune_trainer.train.batches import ShuffledRows
from tests.methods import sampled
from tests.trainer.test_train_preference import (
    METHODS,
    bench,
    config_for,
    log_likelihood,
    named,
    rows_for,
)
from tests.trainer.test_train_resume import preempted
from tests.trainer.workbench import Sheet, Undisturbed, Workbench, tiny_tokenizer
from tools.models import tiny
from tools.sizing.accuracy import small

__all__ = ["bench"]
COMPUTED = "computing the log-likelihoods of the rows under the reference model"


def kept(bench: Workbench, config: TrainConfig) -> list[Path]:
    """The files of all references of the rows."""
    digits = config.dataset.removeprefix("sha256:")
    return sorted((bench.root / "store").glob(f"datasets/{digits}/derived/*/reference.safetensors"))


def passes(caplog: pytest.LogCaptureFixture) -> int:
    """Passes of the reference model since the last call."""
    found = caplog.messages.count(COMPUTED)
    caplog.clear()
    return found


@pytest.mark.parametrize("method", sampled(["DPO", "KTO", "DPO with Full", "KTO with Full"], "DPO", "KTO"))
def test_a_run_that_resumes_and_another_one_of_the_same_start_read_the_reference(
    bench: Workbench, undisturbed: Undisturbed, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    caplog.set_level("INFO")
    config = config_for(bench, method)

    preempted(bench, config, 3)
    assert passes(caplog) == 2  # of the training and of the validation rows
    resumed = bench.train(config)
    assert passes(caplog) == 0
    faster = config.hyperparameters.model_copy(update={"learning_rate": 1e-2})
    bench.train(config.model_copy(update={"run": "faster", "hyperparameters": faster}))
    assert passes(caplog) == 0
    parent = resumed.checkpoints[-1]
    bench.train(config.model_copy(update={"run": "onwards", "parent": named(parent)}))
    assert passes(caplog) == 2

    assert len(kept(bench, config)) == 4
    assert resumed == undisturbed(config).model_copy(update={"restarts": 1})


def test_a_reference_that_was_removed_is_computed_again(bench: Workbench, undisturbed: Undisturbed) -> None:
    config = config_for(bench, "DPO")
    preempted(bench, config, 3)
    for file in kept(bench, config):
        shutil.rmtree(file.parent)

    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 1})


@pytest.mark.parametrize("method", ["DPO", "KTO"])
def test_the_reference_is_what_the_base_model_says_about_each_answer(bench: Workbench, method: str) -> None:
    config = config_for(bench, method)
    rows = [AnswerEncoder(tiny_tokenizer()).encode(row) for row in rows_for(method)]
    base = load_base(tiny(), None, torch.device("cpu"))
    (order,) = ShuffledRows(len(rows), config.hyperparameters.seed).chunks(len(rows))
    before = dict(zip(order, [order[-1], *order[:-1]], strict=True))

    bench.train(config)

    tensors = [load_file(file)["log_likelihoods"] for file in kept(bench, config)]
    (found,) = (each for each in tensors if len(each) == len(rows))
    expected = [
        (
            log_likelihood(base, row.prompt, row.answer),
            log_likelihood(
                base, row.prompt, rows[before[index]].answer if row.rejected is None else row.rejected
            ),
        )
        for index, row in enumerate(rows)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_only_the_rows_that_a_run_reads_have_a_reference(bench: Workbench) -> None:
    config = config_for(bench, "DPO", max_steps=1)

    bench.train(config, Sheet())

    assert {len(load_file(file)["log_likelihoods"]) for file in kept(bench, config)} == {4, 5}


def test_a_step_has_no_forward_pass_of_the_reference() -> None:
    """ORPO, which has no reference, computes the same sequences."""
    shape = StepShape(rows=1, length=64)
    dpo, orpo = (
        measure_step(small(), METHODS[method], shape, Precision(torch.float32, autocast=False))
        for method in ("DPO", "ORPO")
    )

    assert dpo.matmul_flops == pytest.approx(orpo.matmul_flops, rel=0.02)
    assert orpo.reference_matmul_flops == 0
    # The backward pass of a frozen layer has one product per product of the forward pass.
    assert dpo.reference_matmul_flops == pytest.approx(dpo.matmul_flops / 2, rel=0.15)
