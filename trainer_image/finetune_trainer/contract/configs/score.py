# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that computes the user's metrics."""

from typing import Literal

from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.custommetric import CustomMetric
from finetune_trainer.contract.evaluation import GateBound
from finetune_trainer.contract.vocabulary import SplitName


class ScoreConfig(StageConfig):
    """Compute the user's metrics of answers that an evaluation has generated.

    The pod has no store, no credentials and no network: it mounts two folders, and its result is its
    termination message.
    """

    stage: Literal["score"] = "score"
    predictions_path: str
    """Folder of the evaluate stage in the run's folder."""
    dataset_path: str
    """Folder of the dataset."""
    split: SplitName = "test"
    group_by: str | None = None
    """Column of the source whose rows are together in one split, and count as one; None: independent rows."""
    metrics: tuple[CustomMetric, ...]
    gates: tuple[GateBound, ...] = ()
    """Bounds for which the result has evidence, as in the config of evaluate. Those of other metrics are
    ignored."""
