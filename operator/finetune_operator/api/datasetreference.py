# SPDX-License-Identifier: Apache-2.0
"""Reference to a Dataset."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model, Name, ShortName


class DatasetReference(Model):
    """Reference to a Dataset and to one of its versions."""

    name: Annotated[ShortName, Field(description="Name of the Dataset.")]
    version: Annotated[
        Name | None,
        Field(
            description="DatasetVersion to use. Default: the newest at the start, recorded in"
            " status.resolved.datasetVersion."
        ),
    ] = None
