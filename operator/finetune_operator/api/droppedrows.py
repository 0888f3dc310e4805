# SPDX-License-Identifier: Apache-2.0
"""Rows that a run leaves out."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model


class DroppedRows(Model):
    """Rows of training and validation that the run does not use, because they are too long."""

    rows: Annotated[int, Field(description="Number of rows.")]
    percent: Annotated[float, Field(description="Percent of the rows of training and validation.")]
