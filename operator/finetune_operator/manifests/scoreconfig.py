# SPDX-License-Identifier: Apache-2.0
"""Builder of the config of the stage that computes the user's metrics."""

from collections.abc import Mapping

from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.manifests.custommetrics import mounted_metrics
from finetune_operator.manifests.stageinputs import StageInputs
from finetune_trainer.contract.configs.score import ScoreConfig
from finetune_trainer.contract.environment import DATASET_MOUNT, PREDICTIONS_MOUNT
from finetune_trainer.contract.evaluation import GateBound
from finetune_trainer.contract.references import StoreConfig


def score_config(
    inputs: StageInputs,
    evaluation: EvaluationSpec,
    digests: Mapping[str, str],
    *,
    group_by: str | None = None,
) -> ScoreConfig:
    """The config of score, whose pod has no store and reports no progress.

    Args:
        digests: digest of the source of each metric when the run started, by the name of the metric.
        group_by: column whose rows are together in one split.
    """
    return ScoreConfig(
        contract=inputs.contract_version,
        owner=inputs.contract_owner,
        run=inputs.run,
        store=StoreConfig(uri=inputs.store_uri, path=""),
        predictions_path=PREDICTIONS_MOUNT,
        dataset_path=DATASET_MOUNT,
        group_by=group_by,
        metrics=mounted_metrics(evaluation.custom_metrics, digests),
        gates=tuple(GateBound(**gate.model_dump()) for gate in evaluation.gates),
    )
