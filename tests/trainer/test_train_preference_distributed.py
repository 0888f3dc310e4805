# SPDX-License-Identifier: Apache-2.0
"""Several processes train on preference data like a single one, whichever rows each of them has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.train import trainer
from tests.trainer.test_train_distributed import Pods, gradients, pods, show_gradients
from tests.trainer.test_train_preference import rows_for
from tests.trainer.workbench import Workbench, elsewhere, weights

ROWS = 9
"""In the last step, one process has a batch of one row, and the other has none."""


def settings_for(method: str) -> dict[str, Any]:
    return {"method": method, "rows": rows_for(method)[:ROWS], "settings": {"epochs": 3}}


@pytest.mark.parametrize("method", ["DPO", "KTO", pytest.param("ORPO", marks=pytest.mark.full)])
def test_two_processes_train_as_one_with_the_same_rows_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(trainer, "MAX_GRADIENT_NORM", 1e9)
    one = elsewhere(Workbench(tmp_path), "one")
    expected = one.train(Pods(one, **settings_for(method)).alone())
    with pods(tmp_path, **settings_for(method)) as two:
        leader, other = two.run(show_gradients)

    assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
    result = two.result
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    assert result.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for mine, theirs in zip(result.checkpoints, expected.checkpoints, strict=True):
        assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-5)
        assert mine.reward_margin == pytest.approx(theirs.reward_margin, rel=1e-3)
        assert mine.reward_accuracy == theirs.reward_accuracy
        together, alone = weights(two.bench.checkpoint(mine)), weights(one.checkpoint(theirs))
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
    # Adam and clipping hide gradients that are too small or too large.
    torch.testing.assert_close(
        gradients(two.bench, result.steps), gradients(one, result.steps), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    "method",
    [
        "KTO",
        pytest.param("DPO", marks=pytest.mark.full),
        pytest.param("ORPO", marks=pytest.mark.full),
    ],
)
def test_a_run_whose_process_is_killed_ends_with_the_same_weights(tmp_path: Path, method: str) -> None:
    other = elsewhere(Workbench(tmp_path), "undisturbed")
    with pods(other.root, **settings_for(method)) as undisturbed:
        assert [ended.code for ended in undisturbed.run()] == [ExitCode.OK, ExitCode.OK]
        expected = undisturbed.result
    with pods(tmp_path, **settings_for(method)) as two:
        first = [two.start(rank) for rank in range(2)]
        first[0].read_until("saved the state after step 4")
        first[1].kill()
        assert first[0].finish().code == ExitCode.PEER_LOST

        assert [ended.code for ended in two.run()] == [ExitCode.OK, ExitCode.OK]
        assert two.result == expected.model_copy(update={"restarts": 1})
