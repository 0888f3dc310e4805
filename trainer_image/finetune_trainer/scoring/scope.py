# SPDX-License-Identifier: Apache-2.0
"""What metrics compare answers with, in addition to the correct answer of the row."""

from dataclasses import dataclass

from finetune_trainer.scoring.jsonschemas import JSONSchema
from finetune_trainer.scoring.labels import LabelSet
from finetune_trainer.scoring.patterns import AnswerPattern


@dataclass(frozen=True, slots=True)
class MetricScope:
    """What metrics compare answers with, in addition to the correct answer of the row."""

    labels: LabelSet | None = None
    """Labels of a classification; None if no metric needs them."""
    constrained_labels: bool = False
    """Whether the answer to a classification is the most likely label instead of the generated text."""
    json_schema: JSONSchema | None = None
    """Schema of the answers; None for any JSON."""
    pattern: AnswerPattern | None = None

    @property
    def choices(self) -> tuple[str, ...]:
        """The labels of which the most likely is the answer; none if the answer is generated."""
        return self.labels.names if self.constrained_labels and self.labels is not None else ()
