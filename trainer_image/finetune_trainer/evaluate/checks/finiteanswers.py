# SPDX-License-Identifier: Apache-2.0
"""Finds answers of the tuned model that ended because it predicted NaN or infinity."""

from collections.abc import Iterable

from finetune_trainer.contract.evaluation import CheckFinding
from finetune_trainer.contract.vocabulary import SplitName
from finetune_trainer.evaluate.checks.namedrows import named_rows
from finetune_trainer.evaluate.checks.probecheck import NOT_FINITE
from finetune_trainer.evaluate.predictions import RowPrediction


def not_finite_findings(rows: Iterable[RowPrediction], split: SplitName) -> tuple[CheckFinding, ...]:
    """Check the measured rows of the tuned model, which are rows of `split`."""
    named = sorted(row.row for row in rows if row.not_finite)
    if not named:
        return ()
    return (
        CheckFinding(
            check=NOT_FINITE,
            veto=True,
            message=(
                "the weights predict values that are not finite in answers to rows"
                f" {named_rows(named)} of the {split} split: they overflow in this precision, or are damaged."
                " Lower hyperparameters.learningRate in a new run"
            ),
        ),
    )
