# SPDX-License-Identifier: Apache-2.0
"""The config of the stage that analyzes a new revision of an endpoint."""

from typing import Final, Literal

from finetune_trainer.contract.analysis import DEFAULT_MIN_ROWS, AnalysisGateBound
from finetune_trainer.contract.base import Contract, Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.prometheusqueries import PrometheusSource
from finetune_trainer.contract.vocabulary import ANALYZE

MAX_ANALYZED_PODS: Final = 16
"""Pods of each revision that are measured. Those of larger revisions are a sample."""


class ProbedModel(Contract):
    """A model of an endpoint, and the dataset whose test rows are sent to it."""

    name: str
    dataset: Digest | None = None
    """None if the store has no rows for it. Then gates on answers are inconclusive."""
    is_new: bool = False
    """Whether the stable revision has no model of this name, so that there is nothing to compare."""
    reasoning_parser: str | None = None
    """Parser that separates the reasoning from the expected answers; None if they have none."""


class AnalysisProbe(Contract):
    """Requests that the analysis sends, for gates on answers or if it would be inconclusive.

    The pods count them.
    """

    requests: int
    """Number of requests to each revision."""
    min_rows: int = DEFAULT_MIN_ROWS
    """Rows that each model must answer before a gate on answers decides."""
    models: tuple[ProbedModel, ...]
    pods: tuple[str, ...]
    """Base URLs of the API of the new revision's pods, in the order of `AnalyzeConfig.pods`."""
    stable_pods: tuple[str, ...] = ()
    """Those of the stable revision, in the order of `AnalyzeConfig.stable_pods`."""
    digests: tuple[Digest, ...] = ()
    """Digests of the models that the new revision's pods have. Another pod may get the address of one that
    has ended: an address gets a request only if its metrics name models with these digests and no others."""
    stable_digests: tuple[Digest, ...] = ()
    api_keys_path: str | None = None
    """Folder with the API keys of the endpoint; None if it needs none."""


class AnalyzeConfig(StageConfig):
    """Measure the pods of a new revision, and decide its gates.

    Its result is its termination message. Without probes the pod has no store.
    """

    stage: Literal["analyze"] = ANALYZE
    pods: tuple[str, ...]
    """URLs of the metrics of the new revision's pods."""
    stable_pods: tuple[str, ...] = ()
    """URLs of those of the stable revision. Without them comparisons are inconclusive."""
    baseline: Literal["Concurrent", "Past"] = "Concurrent"
    """Requests of the stable revision to compare with: those in the same time, or, if it gets none any more,
    those since its pods started."""
    gates: tuple[AnalysisGateBound, ...]
    duration_seconds: int
    max_duration_seconds: int
    whole_duration: bool = False
    """Whether the measurement passes only after the max duration. It can fail earlier."""
    min_requests: int
    probe: AnalysisProbe | None = None
    prometheus: PrometheusSource | None = None
