# SPDX-License-Identifier: Apache-2.0
"""The measure of each metric of the contract's table."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.evaluate.measure import Measure, count_labelled_tokens, measure_answers, measure_texts
from finetune_trainer.evaluate.metrics import (
    accuracy,
    answer_tokens,
    chrf,
    f1_token,
    json_fields,
    json_valid,
    loss,
    macro_f1,
    perplexity,
    preference_accuracy,
    regex_match,
    tool_call_match,
    truncated,
)
from finetune_trainer.scoring.metric_scope import MetricScope
from finetune_trainer.scoring.textmetrics.table import TEXT_METRICS

MEASURES: Final[Mapping[Metric, Measure | Callable[[MetricScope], Measure]]] = {
    **{metric: Measure(measure_texts(value)) for metric, value in TEXT_METRICS.items()},
    "loss": Measure(loss.values, count_labelled_tokens),
    "preference_accuracy": Measure(preference_accuracy.values),
    "f1_token": Measure(measure_texts(f1_token.value)),
    "accuracy": accuracy.measure,
    "macro_f1": macro_f1.measure,
    "chrf": Measure(measure_texts(chrf.value), statistics=chrf.statistics, score=chrf.score),
    "json_valid": json_valid.measure,
    "json_fields": Measure(measure_texts(json_fields.value), json_fields.count_json),
    "regex_match": regex_match.measure,
    "tool_call_match": Measure(measure_answers(tool_call_match.value)),
    "answer_tokens": Measure(measure_answers(answer_tokens.value)),
    "truncated": Measure(measure_answers(truncated.value)),
    "perplexity": Measure(perplexity.values, count_labelled_tokens, perplexity.statistics, perplexity.score),
}
"""A function makes the measure of a metric that needs more than the row."""


def measures_of(metrics: Iterable[Metric], scope: MetricScope) -> dict[Metric, Measure]:
    """The measures of these metrics, for a scope that was found for them."""
    chosen = ((metric, MEASURES[metric]) for metric in metrics)
    return {metric: each if isinstance(each, Measure) else each(scope) for metric, each in chosen}
