# SPDX-License-Identifier: Apache-2.0
"""DPO, KTO and ORPO have the losses, gradients and rewards of TRL for a batch with all rows of a step."""

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from finetune_trainer.contract.method import LoRA, Method, Preference
from finetune_trainer.distributed.process_group import ALONE
from finetune_trainer.model import loading
from finetune_trainer.rows import Row
from finetune_trainer.tokens.encoding import AnswerEncoder, EncodedAnswers
from finetune_trainer.train.factory import make_trainer
from finetune_trainer.train.figures import RewardSums
from finetune_trainer.train.model_setup import Trainable, trainable_model
from finetune_trainer.train.preference.preference_loss import Totals
from finetune_trainer.train.preference.preference_trainer import PreferenceTrainer
from tests.methods import method_of
from tests.trainer.workbench import JUDGED, PAIRS, Workbench, tiny_tokenizer
from tools.models import tiny

CPU = torch.device("cpu")
ROWS_PER_STEP = 4
SEED = 15
"""The first epoch has these rows in their order: KTO compares each with the one before."""
PREFERENCES = {
    "DPO": Preference(beta=0.3),
    "KTO": Preference(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5),
    "ORPO": Preference(beta=0.3),
}


def move(model: Trainable) -> None:
    """Move the adapter away from the reference, the same way each time."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def method_named(name: str) -> Method:
    objective, *_ = name.split()
    return method_of(name, lora=LoRA(r=4, alpha=8), preference=PREFERENCES[objective])


def encoded(name: str) -> list[EncodedAnswers]:
    rows: Sequence[Row] = JUDGED if name.startswith("KTO") else PAIRS
    encoder = AnswerEncoder(tiny_tokenizer())
    return [encoder.encode(row) for row in rows[:ROWS_PER_STEP]]


def gradients(model: Trainable) -> dict[str, torch.Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def of_trl(name: str, folder: Path) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Loss, rewards and gradients of TRL's trainer for one batch."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    objective = method_named(name).objective
    config, trainer_class = {
        "DPO": (DPOConfig, DPOTrainer),
        "KTO": (KTOConfig, KTOTrainer),
        "ORPO": (ORPOConfig, ORPOTrainer),
    }[objective]
    preference = PREFERENCES[objective]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5} if objective == "KTO" else {}
    rows = columns(objective, encoded(name))
    model = trainable_model(tiny(), method_named(name), CPU)
    trainer: Any = trainer_class(
        model=model,
        args=config(
            output_dir=str(folder),
            beta=preference.beta,
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_length=64,
            gradient_checkpointing=False,
            **weights,
        ),
        train_dataset=Tokenized.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")
    for parameter in model.parameters():
        if parameter.requires_grad:
            # TRL rounds an adapter over 4 bits to bfloat16, ours is in float32.
            parameter.data = parameter.data.float()
    move(model)
    loss = trainer.compute_loss(model.train(), trainer.data_collator(rows))
    loss.backward()
    stored = trainer._stored_metrics["train"] if objective == "ORPO" else trainer._metrics["train"]
    return float(loss), {key: values[-1] for key, values in stored.items()}, gradients(model)


class Tokenized(Dataset):  # type: ignore[misc] # datasets has no types
    """TRL tokenizes with `map` and `filter`."""

    def map(self, *_: Any, **__: Any) -> "Tokenized":
        return self

    def filter(self, *_: Any, **__: Any) -> "Tokenized":
        return self


def columns(name: str, rows: Sequence[EncodedAnswers]) -> list[dict[str, Any]]:
    if name == "DPO":
        return [
            {"prompt_ids": row.prompt, "chosen_ids": row.answer, "rejected_ids": row.rejected} for row in rows
        ]
    if name == "KTO":
        return [
            {
                "prompt_ids": row.prompt,
                "completion_ids": row.answer,
                "KL_completion_ids": rows[index - 1].answer,
                "label": row.label,
            }
            for index, row in enumerate(rows)
        ]
    return [
        {
            f"{side}_{column}": values
            for side, answer in (("chosen", row.answer), ("rejected", row.rejected or []))
            for column, values in (
                ("input_ids", [*row.prompt, *answer]),
                ("attention_mask", [1] * len([*row.prompt, *answer])),
                ("labels", [*[-100] * len(row.prompt), *answer]),
            )
        }
        for row in rows
    ]


def of_ours(name: str, folder: Path, batch_size: int) -> tuple[float, RewardSums, dict[str, torch.Tensor]]:
    """The same of our trainer, in batches of a step."""
    rows = encoded(name)
    model = trainable_model(tiny(), method_named(name), CPU)
    trainer = make_trainer(
        model,
        rows,
        tokenizer=tiny_tokenizer(),
        method=method_named(name),
        hyperparameters=Workbench(folder)
        .train_config("sha256:" + "0" * 64, "sha256:" + "0" * 64, max_sequence_length=64, seed=SEED)
        .hyperparameters,
        folder=folder,
        device=CPU,
        continues=False,
        group=ALONE,
    )
    assert isinstance(trainer, PreferenceTrainer)
    move(model)
    compared, loss, prepared = trainer._rows, trainer._loss, trainer._model
    model.train()
    assert compared.order == list(range(ROWS_PER_STEP))
    batches = [
        loss.collate([compared[row] for row in compared.order[at : at + batch_size]])
        for at in range(0, ROWS_PER_STEP, batch_size)
    ]
    totals = sum((loss.totals(prepared, batch) for batch in batches), Totals())
    scores = [loss.scores(prepared, batch) for batch in batches]
    losses = [loss.loss_sum(each, totals) / totals.rows for each in scores]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    rewards = RewardSums.of(torch.stack([loss.reward_sums(each) for each in scores]).sum(dim=0).tolist())
    return float(sum(losses)), rewards, gradients(model)


@pytest.mark.parametrize(
    ("name", "batch_size"),
    [
        *product(PREFERENCES, (ROWS_PER_STEP, 3)),
        ("DPO with QLoRA", ROWS_PER_STEP),
        pytest.param("KTO with QLoRA", ROWS_PER_STEP, marks=pytest.mark.full),
        pytest.param("ORPO with QLoRA", ROWS_PER_STEP, marks=pytest.mark.full),
    ],
)
def test_a_step_has_the_loss_of_trl_for_one_batch_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, batch_size: int
) -> None:
    # Products of 4-bit weights in float32, because bfloat16 rounds them otherwise in a batch of other rows.
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _: False)
    expected, figures, expected_gradients = of_trl(name, tmp_path / "trl")

    loss, rewards, found = of_ours(name, tmp_path, batch_size)

    assert loss == pytest.approx(expected, rel=1e-5)
    assert found.keys() == expected_gradients.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, expected_gradients[key], rtol=1e-3, atol=1e-6)
    assert rewards.chosen / rewards.chosen_rows == pytest.approx(figures["rewards/chosen"], rel=1e-4)
    assert rewards.rejected / rewards.rejected_rows == pytest.approx(figures["rewards/rejected"], rel=1e-4)
    if method_named(name).objective == "KTO":
        assert figures["kl"] > 0
    else:
        assert rewards.accuracy == pytest.approx(figures["rewards/accuracies"])
