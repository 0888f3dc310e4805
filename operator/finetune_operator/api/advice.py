# SPDX-License-Identifier: Apache-2.0
"""Advice of the operator for later runs."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Message, Model, Name

MAX_ADVICE: Final = 4


class Advice(Model):
    """One thing that a later run can do better."""

    reason: Annotated[
        str,
        Field(
            max_length=64,
            description="Kind of the advice. SmallerProfile: a ComputeProfile with less device memory is"
            " large enough for this model line.",
        ),
    ]
    profile: Annotated[Name | None, Field(description="ComputeProfile that the advice names.")] = None
    message: Annotated[Message, Field(description="The advice, with the figures that it follows from.")]


AdviceList = Annotated[
    tuple[Advice, ...],
    Field(
        max_length=MAX_ADVICE,
        description="Advice for later runs, from what this run and earlier ones measured.",
    ),
]
