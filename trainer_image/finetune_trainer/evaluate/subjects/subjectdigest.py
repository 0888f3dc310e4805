# SPDX-License-Identifier: Apache-2.0
"""What the predictions of a subject depend on."""

import hashlib
import json
from typing import Final

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.vocabulary import Subject

_NOT_PREDICTIONS: Final = frozenset(
    {
        "subjects",
        "prompted",
        "live",
        "gates",
        "checks",
        "judges",
        "probe",
        "sliceBy",
        "groupBy",
        "tasks",
        "trainingDataset",
        "shownDataset",
        "customMetrics",
        "batchSize",
        "stepTimeoutSeconds",
    }
)
"""Wire names of the fields that do not change the predictions of every subject."""


def subject_digest(config: EvaluateConfig, subject: Subject) -> str:
    """SHA-256 of all that determines the predictions of a subject, as 64 hexadecimal digits.

    A new champion changes that of Live only, so that the other subjects are not measured again.
    """
    left_out = config.not_work | _NOT_PREDICTIONS
    work = {name: value for name, value in config.to_dict().items() if name not in left_out}
    if subject == "Prompted":
        work["prompted"] = config.prompted.to_dict()
        if config.shown_dataset is not None:
            work["shownDataset"] = config.shown_dataset
    if subject == "Live" and config.live is not None:
        work["live"] = {name: value for name, value in config.live.to_dict().items() if name != "name"}
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
