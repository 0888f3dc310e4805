# SPDX-License-Identifier: Apache-2.0
"""Every kind of run on the path of a GPU, from its first step to its published Checkpoints.

The dimensions are the method, how many processes train and whether they share the weights, and gradient
checkpointing. `make test` takes each pair of values of two dimensions, `make test-full` all combinations.
"""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
import torch
from torch.distributed import distributed_c10d

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import OBJECTIVES, LoRA, Method, can_shard
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.train.callbacks import Divergence
from finetune_trainer.train.trainer import training_arguments
from tests.methods import name_of, sampled
from tests.trainer import test_train_preference as preference
from tests.trainer.gpuwrapping import on_the_path_of_a_gpu, take_the_path_of_a_gpu, tiny_in_bfloat16
from tests.trainer.test_train_distributed import Pods, pods
from tests.trainer.test_train_resume import METHODS, preempted
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere

KINDS: Final = {
    "LoRA": METHODS["LoRA"],
    "QLoRA": METHODS["QLoRA"],
    "Full": METHODS["Full"],
    **preference.METHODS,
    **preference.QUANTIZED,
    "QLoRA with DoRA": Method(type="QLoRA", lora=LoRA(r=4, alpha=8, dropout=0.1, dora=True)),
    "DoRA": METHODS["DoRA"],
}
PLACES: Final = ("one process", "two replicas", "two that share the weights")
ALONE: Final = ("DPO with QLoRA", "QLoRA with DoRA", "DoRA")
"""Kinds with one process in `make test`; the weights of DoRA cannot be shared."""
MORE: Final = ("KTO with QLoRA", "ORPO with QLoRA")
"""Kinds of `make test-full`."""
BUDGET: Final = 40
"""Tokens of a batch: a step of a process has two batches of two rows."""


def train_as_on_a_gpu() -> None:
    """Report whether gradients have more than 8 bits, and end this process if it unpickles an object."""
    take_the_path_of_a_gpu()

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

    vars(distributed_c10d)["_tensor_to_object"] = refuse
    Divergence.before_update = checked  # type: ignore[method-assign]


def config_for(bench: Workbench, kind: str, **settings: Any) -> TrainConfig:
    """A run that validates and keeps weights between the ends of its epochs."""
    rows = preference.rows_for(kind) if compares_answers(kind) else ROWS
    chosen: dict[str, Any] = {"validate_every_steps": 2, "keep": 2, "max_batch_tokens": budget_of(kind)}
    return bench.train_config(
        bench.model(tiny_in_bfloat16()),
        bench.dataset(rows, rows[:5]),
        method=KINDS[kind],
        **{"max_batch_rows": 2, **chosen, **settings},
    )


def compares_answers(kind: str) -> bool:
    return OBJECTIVES[KINDS[kind].objective].rows.is_preference_data


def budget_of(kind: str) -> int | None:
    """Batches of preference data have a number of rows."""
    return None if compares_answers(kind) else BUDGET


def learns_and_goes_on_exactly(root: Path, kind: str, **settings: Any) -> None:
    bench, sheet = Workbench(root), Sheet()
    other = elsewhere(bench, "uninterrupted")
    with on_the_path_of_a_gpu():
        straight = other.train(config_for(other, kind, **settings), sheet)
        config = config_for(bench, kind, **settings)
        preempted(bench, config, 4)

        assert bench.train(config) == straight.model_copy(update={"restarts": 1})
    assert sheet.seen[-1].loss < sheet.seen[0].loss  # type: ignore[operator]
    assert straight.validation_loss is not None
    assert len(straight.checkpoints) >= 3
    assert all(checkpoint.probe for checkpoint in straight.checkpoints)


def described(kind: str, *, sharded: bool, **settings: Any) -> dict[str, Any]:
    """A run of two processes, for `pods`. Dropout would differ between processes."""
    has_pairs, method = compares_answers(kind), KINDS[kind]
    return {
        "dropout": 0,
        "method": name_of(method),
        "dora": method.lora.dora,
        "base": tiny_in_bfloat16(),
        "rows": preference.rows_for(kind)[:9] if has_pairs else ROWS[:11],
        "accumulation": 1 if has_pairs else 2,
        "settings": {"sharded": sharded, "max_batch_tokens": budget_of(kind), **settings},
    }


def two_train_as_one(root: Path, kind: str, *, sharded: bool, **settings: Any) -> None:
    one, run = elsewhere(Workbench(root), "one"), described(kind, sharded=sharded, **settings)
    with on_the_path_of_a_gpu():
        expected = one.train(Pods(one, **run).alone())
    with pods(root, **run) as two:
        leader, other = two.run(train_as_on_a_gpu)

        assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
        result = two.result
    assert any("more than 8 bits" in message for message in leader.messages)
    assert (result.steps, result.tokens) == (expected.steps, expected.tokens)
    # A sharded layer of a whole model is gathered in bfloat16, so it rounds at other places.
    tolerance = 0.02 if sharded and kind == "Full" else 1e-4
    assert result.train_loss == pytest.approx(expected.train_loss, rel=tolerance)
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=tolerance)


CELLS: Final = [
    pytest.param(
        kind,
        place,
        checkpointing,
        id=f"{kind}, {place}{', checkpointing' if checkpointing else ''}",
        marks=()
        if (i + j) % 2 == checkpointing and (kind not in ALONE or not j) and kind not in MORE
        else pytest.mark.full,
    )
    for (i, kind), (j, place), checkpointing in product(enumerate(KINDS), enumerate(PLACES), (False, True))
    if can_shard(KINDS[kind]) or place != PLACES[2]
]
"""`make test` has each pair of values, except of `ALONE` and `MORE`."""


@pytest.mark.parametrize(("kind", "place", "checkpointing"), CELLS)
def test_every_kind_of_run_trains_validates_and_publishes(
    tmp_path: Path, kind: str, place: str, *, checkpointing: bool
) -> None:
    if place == PLACES[0]:
        learns_and_goes_on_exactly(tmp_path, kind, gradient_checkpointing=checkpointing)
    else:
        two_train_as_one(tmp_path, kind, sharded=place == PLACES[2], gradient_checkpointing=checkpointing)


@pytest.mark.parametrize("kind", sampled(["LoRA", "DoRA", "QLoRA", "Full"], "LoRA"))
def test_a_run_without_a_token_budget_learns_and_goes_on_exactly(tmp_path: Path, kind: str) -> None:
    """Its device's memory is not known, so batches have a number of rows."""
    learns_and_goes_on_exactly(tmp_path, kind, max_batch_tokens=None)


@pytest.mark.parametrize("kind", sampled(["Full", "LoRA"], "Full"))
def test_a_run_whose_gpu_has_no_kernel_for_packed_rows_pads_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO")
    bench, sheet = Workbench(tmp_path), Sheet()
    with on_the_path_of_a_gpu(has_kernel=False):
        result = bench.train(config_for(bench, kind), sheet)

    assert "varlen attention cannot be used for this model: no kernel image" in caplog.text
    assert f"batches of up to {BUDGET} tokens: rows are padded" in caplog.text
    assert result.validation_loss is not None
    assert sheet.seen[-1].loss < sheet.seen[0].loss  # type: ignore[operator]


def test_a_learning_curve_has_the_validation_losses_of_its_run(tmp_path: Path) -> None:
    """It has a loss for each row of packed batches."""
    bench = Workbench(tmp_path)
    with on_the_path_of_a_gpu():
        config = config_for(bench, "LoRA").model_copy(update={"learning_curve": (0.5,)})
        result = bench.train(config)

    assert result.learning_curve is not None
    half, whole = result.learning_curve.points
    best = next(each for each in result.checkpoints if each.best)
    assert whole.loss == pytest.approx(best.validation_loss, rel=1e-4)
    assert half.problem is None
    assert half.loss > whole.loss  # type: ignore[operator]


@pytest.mark.parametrize(
    ("kind", "sharded"),
    [
        ("Full", True),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (("LoRA", False), ("LoRA", True), ("QLoRA", True), ("KTO", False), ("DPO", True))
        ),
    ],
)
def test_two_processes_go_on_exactly_after_one_is_killed(tmp_path: Path, kind: str, *, sharded: bool) -> None:
    run = described(kind, sharded=sharded, epochs=4)
    with pods(elsewhere(Workbench(tmp_path), "uninterrupted").root, **run) as straight:
        assert [ended.code for ended in straight.run(train_as_on_a_gpu)] == [ExitCode.OK] * 2
        expected = straight.result
    with pods(tmp_path, **run) as two:
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
