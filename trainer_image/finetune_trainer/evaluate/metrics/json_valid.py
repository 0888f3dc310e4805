# SPDX-License-Identifier: Apache-2.0
"""Share of answers that are JSON, and valid by the schema if there is one."""

from finetune_trainer import canonical_json
from finetune_trainer.evaluate.measure import Measure, measure_texts
from finetune_trainer.scoring.answer_formats import JSONSchema
from finetune_trainer.scoring.metric_scope import MetricScope


def measure(scope: MetricScope) -> Measure:
    """The measure for the schema of the scope."""
    return Measure(measure_texts(lambda answer, _: value(answer, scope.json_schema)))


def value(answer: str, schema: JSONSchema | None) -> float:
    """Return 1 if the whole answer is valid JSON, otherwise 0.

    JSON in a Markdown code block is not valid: a client that parses the answer fails.
    """
    try:
        parsed = canonical_json.parse(answer)
    except ValueError:
        return 0.0
    return float(schema is None or schema.accepts(parsed))
