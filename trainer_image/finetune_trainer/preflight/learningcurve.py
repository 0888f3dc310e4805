# SPDX-License-Identifier: Apache-2.0
"""What a learning curve adds to a run: the duration of its trainings, which must fit the time of the run."""

from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.train.learningcurve.subsets import share_of_work, subset_size


def with_learning_curve(
    config: PreflightConfig, prediction: Prediction | None, rows: int, chosen: Hyperparameters
) -> Prediction | None:
    """The prediction of a run on `rows` rows, with the seconds of its learning curve.

    A training takes seconds in proportion to the rows that it reads.
    Raises StageFailure (INVALID_CONFIG) if even the lower bound exceeds the limit of the run.
    """
    if prediction is None or prediction.seconds_low is None or prediction.seconds_high is None:
        return prediction
    sizes = (subset_size(rows, share) for share in config.learning_curve)
    factor = 1 + sum(share_of_work(size, rows, chosen) for size in sizes)
    alone, limit = prediction.seconds_low, config.max_run_seconds
    together = factor * alone
    if config.learning_curve and limit is not None and together > limit:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"learningCurve.shares: the run takes at least {alone:.0f} s, and the trainings on parts of"
            f" its rows {together - alone:.0f} s more, together {together:.0f} s, but maxRunSeconds is"
            f" {limit}. Create a new run with fewer or smaller shares, without learningCurve, or with a"
            " larger compute.maxRunSeconds",
        )
    return prediction.model_copy(
        update={"seconds_low": together, "seconds_high": factor * prediction.seconds_high}
    )
