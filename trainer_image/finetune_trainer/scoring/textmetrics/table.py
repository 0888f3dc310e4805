# SPDX-License-Identifier: Apache-2.0
"""The metrics of texts. An evaluation computes them, and the analysis of a rollout, which has no PyTorch."""

from collections.abc import Callable, Collection, Mapping
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.scoring.textmetrics import exact_match, normalized_match, rouge_l

TextMetric = Callable[[str, Collection[str]], float]
"""Returns the value of an answer, without white space around it, for the accepted texts."""

TEXT_METRICS: Final[Mapping[Metric, TextMetric]] = {
    "exact_match": exact_match.value,
    "normalized_match": normalized_match.value,
    "rouge_l": rouge_l.value,
}
