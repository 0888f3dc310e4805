"""The measure of each metric of the contract's table."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.evaluate.measure import Measure, count_labelled_tokens
from finetune_trainer.evaluate.metrics import exact_match, f1_token, loss, preference_accuracy

MEASURES: Final[Mapping[Metric, Measure]] = {
    "exact_match": Measure(exact_match.values),
    "loss": Measure(loss.values, count_labelled_tokens),
    "preference_accuracy": Measure(preference_accuracy.values),
    "f1_token": Measure(f1_token.values),
}
