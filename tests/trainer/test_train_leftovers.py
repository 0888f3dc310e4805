# SPDX-License-Identifier: Apache-2.0
"""The folder of a finished run has its result and report, and no resume states."""

from pathlib import Path

import pytest

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.entrypoint import process
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.train.states import resume_states
from tests.trainer.processes import run, run_fresh
from tests.trainer.workbench import ROWS, Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def config_for(bench: Workbench) -> TrainConfig:
    dataset = bench.dataset(ROWS, ROWS[:5])
    return bench.train_config(
        dataset=dataset, method=Method(lora=LoRA(r=4, alpha=8)), save_every_steps=1, keep=2
    )


def left(bench: Workbench, config: TrainConfig) -> set[str]:
    return {path.name for path in bench.store.run_folder(config.run, "train").path.iterdir()}


def test_resume_states_go_when_the_result_is_in_the_store_and_the_rest_stays(bench: Workbench) -> None:
    config = config_for(bench)
    ended = run_fresh(config)
    assert ended.code == ExitCode.OK, ended.logs
    assert {"state", "best", "kept"}.isdisjoint(left(bench, config))
    assert {"result.json", "report.html", "report.json"} <= left(bench, config)

    # The pod was killed between the two: the next one finds the result and removes the states.
    folder = bench.store.run_folder(config.run, "train")
    (folder.path / "state" / "step-1").mkdir(parents=True)
    again = run(config)
    assert again.code == ExitCode.OK
    assert again.termination_message == ended.termination_message
    assert "state" not in left(bench, config)


def test_states_that_cannot_be_removed_fail_no_run(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: object) -> None:
        raise StageFailure(FailureReason.STORE_UNAVAILABLE, "read-only", ExitCode.STORE_UNAVAILABLE)

    monkeypatch.setattr(resume_states, "remove_states", refuse)
    config = config_for(bench)
    process._remove_states(bench.store, config)
    assert f"resume states of run {config.run} are left in the store: read-only" in caplog.text
