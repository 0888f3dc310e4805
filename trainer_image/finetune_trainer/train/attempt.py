"""One attempt at a run: where it begins, and what its batches are."""

from dataclasses import dataclass

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.distributed.group import Group
from finetune_trainer.store import RunFolder
from finetune_trainer.train.guards.memory import BatchSplit
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger
from finetune_trainer.train.states.resume import ResumeState, ResumeStates


@dataclass(frozen=True)
class Attempt:
    """What a process finds in the run's folder."""

    folder: RunFolder
    states: ResumeStates
    state: ResumeState | None
    """What it resumes from; None where it begins."""
    split: BatchSplit
    hyperparameters: Hyperparameters
    """The run's, with batches of the size that fits."""
    fingerprint: Fingerprint

    @classmethod
    def open(cls, config: TrainConfig, folder: RunFolder, group: Group) -> "Attempt":
        """Find it. Collective. Raises StageFailure (FINGERPRINT_MISMATCH, STORE_UNAVAILABLE)."""
        states, fingerprint = ResumeStates(folder, group), Fingerprint.of(config)
        state = states.newest(fingerprint)
        split = BatchSplit(halvings=group.broadcast(BatchSplit.read(folder).halvings))
        return cls(folder, states, state, split, split.of(config.hyperparameters), fingerprint)

    @property
    def step(self) -> int:
        """The step after which it begins."""
        return self.state.step if self.state else 0

    def ledger(self) -> RunLedger:
        """A copy of the state's ledger, to be written on."""
        return (
            self.state.ledger.model_copy(deep=True) if self.state else RunLedger(fingerprint=self.fingerprint)
        )
