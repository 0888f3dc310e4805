# SPDX-License-Identifier: Apache-2.0
"""One attempt at a run: the state it resumes from, and how it divides a step."""

from dataclasses import dataclass

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.store import RunFolder
from finetune_trainer.train.guards.memory import MemoryLadder
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger
from finetune_trainer.train.states.resume import ResumeState, ResumeStates


@dataclass(frozen=True)
class Attempt:
    """The contents of the run's folder at the start of a process."""

    folder: RunFolder
    states: ResumeStates
    state: ResumeState | None
    """The state to resume from; None for a run that starts."""
    ladder: MemoryLadder
    hyperparameters: Hyperparameters
    """Those of the run, with the division of the state; if memory ran out later, with smaller batches."""
    fingerprint: Fingerprint

    @classmethod
    def open(cls, config: TrainConfig, folder: RunFolder, group: Group) -> "Attempt":
        """Read the run's folder. Collective.

        Raises StageFailure (FINGERPRINT_MISMATCH, STORE_UNAVAILABLE).
        """
        states, fingerprint = ResumeStates(folder, group), Fingerprint.of(config)
        state = states.newest(fingerprint)
        ladder = MemoryLadder.read(folder).broadcast(group)
        hyperparameters = config.hyperparameters
        if state is not None:
            hyperparameters = hyperparameters.model_copy(update=state.ledger.division.model_dump())
        return cls(folder, states, state, ladder, ladder.apply(hyperparameters), fingerprint)

    @property
    def step(self) -> int:
        """The optimizer step after which the attempt starts."""
        return self.state.step if self.state else 0

    def ledger(self) -> RunLedger:
        """A copy of the state's ledger, to be continued, with the division of this attempt."""
        division = StepDivision(**self.hyperparameters.model_dump(include=set(StepDivision.model_fields)))
        if self.state is None:
            return RunLedger(fingerprint=self.fingerprint, division=division)
        return self.state.ledger.model_copy(update={"division": division}, deep=True)
