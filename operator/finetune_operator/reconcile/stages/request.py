"""What a stage needs, and how far it can be."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_operator.api.retrystatus import RetryStatus
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.jobresults import Expected
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class Probe:
    """A small Job without devices that uses the run's store as the stage would."""

    name: str
    build: Callable[[], Manifest | Blocked | Failed]


@dataclass(frozen=True, slots=True)
class Peers:
    """What pods that work together find and trust each other by."""

    service: Manifest
    policy: Manifest
    """Both there before the Job, and as long as it has pods."""
    key: Callable[[], Manifest]
    """Created with the Job: it cannot be seen whether it is there, and one that is stays as it is."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A stage that should have a result."""

    stage: Stage
    name: str
    """Of its Job."""
    run: str
    build: Callable[[], Manifest | Blocked | Failed]
    """Makes the Job; called only when there is none."""
    collect_name: str
    build_collect: Callable[[], Manifest | Blocked | Failed]
    contract: int
    """Version of the contract that the stage's Jobs are made in: `contract_of_jobs`."""
    peers: Peers | None = None
    """Of a stage that has several pods."""
    retry: RetryStatus | None = None
    """Failures in a row so far, as the status counts them."""
    probe: Probe | None = None
    """Of a stage that needs devices."""

    @property
    def expected(self) -> Expected:
        """What its result must be of."""
        return Expected(self.run, self.stage, self.contract)


@dataclass(frozen=True, slots=True)
class StageFailed:
    """Failed for good."""

    reason: str
    message: str
    result: StageResult | None


Outcome = StageResult | Working | Blocked | Failed | Retry | StageFailed
