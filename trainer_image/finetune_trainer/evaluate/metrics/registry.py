"""The function that computes each metric of the contract's table."""

from collections.abc import Callable, Mapping
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.evaluate.measured import MeasuredModel
from finetune_trainer.evaluate.metrics import exact_match, f1_token, loss, preference_accuracy

MEASURES: Final[Mapping[Metric, Callable[[MeasuredModel], float]]] = {
    "exact_match": exact_match.measure,
    "loss": loss.measure,
    "preference_accuracy": preference_accuracy.measure,
    "f1_token": f1_token.measure,
}
