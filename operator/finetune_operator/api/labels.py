# SPDX-License-Identifier: Apache-2.0
"""Labels and selectors: the labels of the objects that the operator creates, and the selectors of specs.

Clients find the children and records of an object by these labels.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import GROUP, CELRule, Model, pattern_advice

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OPERATOR: Final = "finetune-operator"
SELECTOR: Final = f"{MANAGED_BY}={OPERATOR}"
"""Selector of all children. The watches of children use it."""

OWNER_KIND: Final = f"{GROUP}/owner-kind"
"""Label of a child or record: kind of the object that created it."""
OWNER_NAME: Final = f"{GROUP}/owner-name"
"""Label of a child or record: name of the object that created it; the beginning of a longer name."""
RUN: Final = f"{GROUP}/run"
"""Label of a child or record: uid of the object that created it."""
ANALYZED: Final = f"{GROUP}/analyzed"
"""Label of a pod: uid of the endpoint that it analyzes. It has no label RUN, which Services select."""
STAGE: Final = f"{GROUP}/stage"
"""Label of a Job and of its pods: the stage that they run, such as `train`."""
MODEL_LINE: Final = f"{GROUP}/model-line"
"""Label of a Checkpoint: its model line."""
DATASET: Final = f"{GROUP}/dataset"
"""Label of a DatasetVersion: its Dataset."""
REVISION: Final = f"{GROUP}/revision"
"""Label of a Deployment, its pods and a preview's Service: name of the endpoint's revision."""
PROFILE: Final = f"{GROUP}/profile"
"""Label of pods, and of their Job or Deployment: ComputeProfile that they were built with."""

LABEL_VALUE: Final = r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"

LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=LABEL_VALUE,
        json_schema_extra=pattern_advice(
            LABEL_VALUE,
            "a label value may only have letters, digits, '-', '_' and '.', for example NVIDIA-A100",
        ),
    ),
]
LABEL_KEY: Final = r"^([-.a-z0-9]+/)?[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?$"


class LabelSelector(Model):
    """Selector of objects that have all of these labels."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"self.matchLabels.all(key, key.matches(r'{LABEL_KEY}'))",
            "a key of matchLabels must be a label name, for example app.kubernetes.io/name",
            "matchLabels",
        ),
    )

    match_labels: Annotated[
        dict[str, LabelValue],
        Field(max_length=16, description="Required labels by name. Empty: every object."),
    ] = Field(default={})


class LabelRequirement(Model):
    """Condition on one label, in the form of v1.LabelSelectorRequirement."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "(self.operator in ['In', 'NotIn']) == (size(self.values) > 0)",
            "operators In and NotIn need values, Exists and DoesNotExist must not have them",
            "values",
        ),
    )

    key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=LABEL_KEY,
            json_schema_extra=pattern_advice(
                LABEL_KEY, "a label name is needed, for example kubernetes.io/metadata.name"
            ),
            description="Name of the label.",
        ),
    ]
    operator: Annotated[
        Literal["In", "NotIn", "Exists", "DoesNotExist"],
        Field(description="Relation of the label's value to `values`."),
    ]
    values: Annotated[
        tuple[LabelValue, ...], Field(max_length=32, description="Values, for In and NotIn.")
    ] = ()

    def is_met_by(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels meets the condition."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class PeerSelector(LabelSelector):
    """Selector of objects that have all of these labels and meet all of these conditions."""

    match_expressions: Annotated[
        tuple[LabelRequirement, ...],
        Field(max_length=8, description="Conditions on labels, in addition to matchLabels. Empty: none."),
    ] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects an object with these labels."""
        has_labels = self.match_labels.items() <= labels.items()
        return has_labels and all(each.is_met_by(labels) for each in self.match_expressions)
