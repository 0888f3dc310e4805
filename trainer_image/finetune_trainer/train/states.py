"""Resume states of a run: `step-N` folders, the newest valid one wins, the last two are kept."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_trainer.contract import FailureReason
from finetune_trainer.failure import StageFailure
from finetune_trainer.store import reachable
from finetune_trainer.train.folders import problem_of, remove_unfinished, save_folder
from finetune_trainer.train.ledger import Fingerprint, Ledger

PREFIX: Final = "step-"
LEDGER: Final = "ledger.json"
KEPT: Final = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """Everything needed to go on after a step."""

    step: int
    folder: Path
    ledger: Ledger


class States:
    """The states in one folder, and the weights that they call the best.

    `state/step-N` has weights, optimizer, scheduler, random numbers and the ledger; `best/step-N` has the
    weights that a ledger's `best` stands for, in the form in which they are published.
    """

    def __init__(self, folder: Path) -> None:
        self._states = folder / "state"
        self._best = folder / "best"
        self._known: list[State] = []
        """Valid states, the newest first."""
        for parent in (self._states, self._best):
            remove_unfinished(parent, PREFIX)

    def newest(self, fingerprint: Fingerprint) -> State | None:
        """The newest valid state; one that is not is logged and left out.

        Raises StageFailure: FINGERPRINT_MISMATCH where it is of another run; STORE_UNAVAILABLE.
        """
        self._known = []
        for step in sorted(_steps(self._states), reverse=True):
            state = self._read(step)
            if state is not None:
                differences = fingerprint.differences(state.ledger.fingerprint)
                if differences:
                    raise StageFailure(
                        FailureReason.FINGERPRINT_MISMATCH,
                        f"{state.folder} belongs to a run with another config ({'; '.join(differences)}); a"
                        " changed run needs a new FineTuneJob",
                    )
                self._known = [state]
                return state
        return None

    def save(self, step: int, ledger: Ledger, fill: Callable[[Path], None]) -> Path:
        """Save the state after `step`; older ones and weights that no kept state needs are removed.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        folder = self._states / f"{PREFIX}{step}"
        snapshot = ledger.model_copy(deep=True)

        def fill_with_ledger(target: Path) -> None:
            fill(target)
            (target / LEDGER).write_text(snapshot.model_dump_json(), encoding="utf-8")

        save_folder(folder, fill_with_ledger)
        older = [state for state in self._known if state.step != step]
        self._known = [State(step, folder, snapshot), *older][:KEPT]
        self._forget()
        return folder

    def save_best(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save the weights that the next saved ledger calls the best. Raises StageFailure."""
        save_folder(self.best_folder(step), fill)

    def best_folder(self, step: int) -> Path:
        """Where the best weights of a ledger are."""
        return self._best / f"{PREFIX}{step}"

    def last_good(self) -> State | None:
        """The newest state that this process has read or saved."""
        return self._known[0] if self._known else None

    def _read(self, step: int) -> State | None:
        folder = self._states / f"{PREFIX}{step}"
        problem = problem_of(folder)
        if problem is None:
            try:
                ledger = Ledger.model_validate_json((folder / LEDGER).read_bytes())
            except (OSError, ValidationError) as error:
                problem = f"its {LEDGER} cannot be read: {error}"
            else:
                if ledger.best is not None:
                    problem = problem_of(self.best_folder(ledger.best.step))
        if problem is not None:
            logger.warning("resume state %s is not used: %s", folder, problem)
            return None
        return State(step, folder, ledger)

    def _forget(self) -> None:
        steps = {state.step for state in self._known}
        best = {state.ledger.best.step for state in self._known if state.ledger.best is not None}
        with reachable(self._states):
            for parent, needed in ((self._states, steps), (self._best, best)):
                for step in _steps(parent) - needed:
                    shutil.rmtree(parent / f"{PREFIX}{step}")


def _steps(parent: Path) -> set[int]:
    with reachable(parent):
        return {
            int(number)
            for path in parent.glob(f"{PREFIX}*")
            if (number := path.name.removeprefix(PREFIX)).isdecimal()
        }
