"""The config of the stage that analyzes a new revision of an endpoint."""

from typing import Final, Literal

from finetune_trainer.contract.analysis import AnalysisGateBound
from finetune_trainer.contract.base import Contract, Digest
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.vocabulary import ANALYZE

MAX_ANALYZED_PODS: Final = 16
"""Pods of each revision that are measured. Those of larger revisions are a sample."""


class ProbedModel(Contract):
    """A model of an endpoint, and the dataset whose test rows are sent to it."""

    name: str
    dataset: Digest


class AnalysisProbe(Contract):
    """Requests that the analysis sends if it would be inconclusive. The pods count them."""

    requests: int
    """Number of requests to each revision."""
    models: tuple[ProbedModel, ...]
    pods: tuple[str, ...]
    """Base URLs of the API of the new revision's pods."""
    stable_pods: tuple[str, ...] = ()
    api_keys_path: str | None = None
    """Folder with the API keys of the endpoint; None if it needs none."""


class AnalyzeConfig(StageConfig):
    """Measure the pods of a new revision, and decide its gates.

    Its result is its termination message. Without probes the pod has no store and no credentials.
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
