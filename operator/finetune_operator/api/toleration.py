# SPDX-License-Identifier: Apache-2.0
"""Toleration of a taint, in the form of v1.Toleration."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.devices import LabelValue
from finetune_operator.api.meta import CELRule, Model


class Toleration(Model):
    """Toleration of a taint of nodes, in the form of v1.Toleration."""

    # Otherwise the API server would refuse every pod with such a toleration.
    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.key) || self.operator == 'Exists'",
            "a toleration without a key needs operator: Exists; for operator: Equal add the key",
        ),
        CELRule(
            "!has(self.value) || self.operator == 'Equal'",
            "a toleration with operator: Exists must not have a value: remove value or choose operator:"
            " Equal",
            "value",
        ),
        CELRule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds needs effect: NoExecute; remove it for other effects",
            "tolerationSeconds",
        ),
    )

    key: Annotated[
        str | None,
        Field(max_length=253, description="Key of the taint. Absent: all taints, with operator Exists."),
    ] = None
    operator: Annotated[
        Literal["Exists", "Equal"],
        Field(description="Exists: the taint may have any value. Equal: the taint must have `value`."),
    ] = "Equal"
    value: Annotated[LabelValue | None, Field(description="Value of the taint, with operator Equal.")] = None
    effect: Annotated[
        Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None,
        Field(description="Effect of the taint. Absent: all effects."),
    ] = None
    toleration_seconds: Annotated[
        int | None,
        Field(
            description="Seconds that a running pod stays on the node, with effect NoExecute. Absent: no"
            " limit."
        ),
    ] = None
