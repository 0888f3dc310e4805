"""The measure of each metric of the contract's table."""

from collections.abc import Mapping
from typing import Final

from finetune_trainer.contract.metrics import Metric
from finetune_trainer.evaluate.measure import Measure, count_labelled_tokens, of_answers, of_texts
from finetune_trainer.evaluate.metrics import (
    answer_tokens,
    chrf,
    exact_match,
    f1_token,
    loss,
    normalized_match,
    perplexity,
    preference_accuracy,
    rouge_l,
    truncated,
)

MEASURES: Final[Mapping[Metric, Measure]] = {
    "exact_match": Measure(of_texts(exact_match.value)),
    "loss": Measure(loss.values, count_labelled_tokens),
    "preference_accuracy": Measure(preference_accuracy.values),
    "f1_token": Measure(of_texts(f1_token.value)),
    "normalized_match": Measure(of_texts(normalized_match.value)),
    "rouge_l": Measure(of_texts(rouge_l.value)),
    "chrf": Measure(of_texts(chrf.value), statistics=chrf.statistics, score=chrf.score),
    "answer_tokens": Measure(of_answers(answer_tokens.value)),
    "truncated": Measure(of_answers(truncated.value)),
    "perplexity": Measure(perplexity.values, count_labelled_tokens, perplexity.statistics, perplexity.score),
}
