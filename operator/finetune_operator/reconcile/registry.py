# SPDX-License-Identifier: Apache-2.0
"""The rows of all kinds in one table."""

from typing import Any, Final

from finetune_operator.reconcile.checkpoint import kind as checkpoint
from finetune_operator.reconcile.computeprofile import kind as computeprofile
from finetune_operator.reconcile.dataset import kind as dataset
from finetune_operator.reconcile.datasetversion import kind as datasetversion
from finetune_operator.reconcile.evaluation import kind as evaluation
from finetune_operator.reconcile.finetunejob import kind as finetunejob
from finetune_operator.reconcile.finetuneschedule import kind as finetuneschedule
from finetune_operator.reconcile.finetunesweep import kind as finetunesweep
from finetune_operator.reconcile.inferencedeployment import kind as inferencedeployment
from finetune_operator.reconcile.kind_table import KindRow

KIND_ROWS: Final[dict[str, KindRow[Any]]] = {
    row.kind: row
    for row in (
        finetunejob.KIND,
        dataset.KIND,
        datasetversion.KIND,
        checkpoint.KIND,
        evaluation.KIND,
        finetunesweep.KIND,
        finetuneschedule.KIND,
        inferencedeployment.KIND,
        computeprofile.KIND,
    )
}
"""Rows by the kind's name."""
