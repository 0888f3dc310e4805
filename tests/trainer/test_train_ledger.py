# SPDX-License-Identifier: Apache-2.0
"""When a run counts as overfitting."""

import pytest

from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.contract.method import Method
from finetune_trainer.train.states.ledger import Best, Fingerprint, RunLedger

DIGEST = "sha256:" + 64 * "0"
FINGERPRINT = Fingerprint(
    base_model=DIGEST,
    dataset=DIGEST,
    method=Method(),
    hyperparameters=Hyperparameters(
        epochs=3,
        learning_rate=1e-4,
        batch_size=1,
        max_sequence_length=64,
        seed=0,
        total_steps=30,
        save_every_steps=10,
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
    ),
)


@pytest.mark.parametrize(
    ("lowest", "validation", "train", "overfit"),
    [
        (1.2, 1.45, 0.5, True),
        (1.2, 1.25, 0.5, False),
        (1.2, 1.45, 0.9, False),
        (1.2, 1.2, 0.5, False),
        (0.001, 0.009, 0.5, False),
    ],
    ids=["rises", "rises by less than 5 %", "training loss rises too", "is the best", "near zero"],
)
def test_overfitting(lowest: float, validation: float, train: float, *, overfit: bool) -> None:
    best = Best(step=10, epoch=1, train_loss=0.8, validation_loss=lowest)
    ledger = RunLedger(
        fingerprint=FINGERPRINT,
        division=StepDivision(),
        best=best,
        validation_loss=validation,
        train_loss=train,
    )

    assert ledger.overfit == overfit


def test_without_validation_nothing_is_said_of_overfitting() -> None:
    assert not RunLedger(fingerprint=FINGERPRINT, division=StepDivision(), train_loss=0.1).overfit
