# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user: Python functions in ConfigMaps."""

from typing import Annotated, Final

from pydantic import Field

from finetune_trainer.contract.base import Contract, Digest
from finetune_trainer.contract.metrics import CUSTOM, Metric

MAX_CUSTOM_METRICS: Final = 4
"""Their scores must fit into a termination message."""


class CustomMetric(Contract):
    """A function of the user, as a pod mounts it."""

    name: Annotated[str, Field(max_length=40)]
    path: str
    """File with the source."""
    function: str = "metric"
    """Name of the function in the source. It takes a row and an answer, and returns a number."""
    digest: Digest | None = None
    """Digest of the source when the run started. None: the source is not known yet."""

    @property
    def metric(self) -> Metric:
        """Its name in results and gates."""
        return f"{CUSTOM}/{self.name}"


class CustomMetricSource(Contract):
    """The source of a metric, as it was when the run started."""

    name: str
    digest: Digest
