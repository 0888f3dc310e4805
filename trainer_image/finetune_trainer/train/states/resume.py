"""Resume states of a run in `step-N` folders: training resumes from the newest valid one; two are kept.

Like an artifact of the store, such a folder is complete if it has a `manifest.json`. It is synced to disk
before it is renamed to its final name.
"""

import logging
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from safetensors import SafetensorError

from finetune_trainer.beneath import read_file
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder, durable
from finetune_trainer.store.failures import Mount, verify_files
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger

STATE: Final = "state"
NO_STEP: Final = -1
"""What rank 0 broadcasts instead of a step if there is no state."""
BEST: Final = "best"
KEPT_STEPS: Final = "kept"
PREFIX: Final = "step-"
LEDGER: Final = "ledger.json"
KEPT_STATES: Final = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumeState:
    """Everything that is needed to resume after a step."""

    step: int
    folder: Path
    ledger: RunLedger


class ResumeStates:
    """The states in a run's folder, and the weights that their ledgers name.

    - `state/step-N`: weights, optimizer, scheduler, random numbers and the ledger.
    - `best/step-N`: the weights of a ledger's `best`, in the form in which they are published.
    - `kept/step-N`: the weights of a ledger's `kept` steps, in the same form.
    """

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._known: list[ResumeState] = []
        """States that this process has read or saved, newest first."""
        if group.is_main_process:
            for parent in (STATE, BEST, KEPT_STEPS):
                remove_unfinished(folder, parent, PREFIX)

    def newest(self, fingerprint: Fingerprint) -> ResumeState | None:
        """Return the newest valid state; invalid ones are logged and skipped. Collective.

        Rank 0 chooses it, and the other processes read the same one.
        Raises StageFailure: FINGERPRINT_MISMATCH if it belongs to another run; STORE_UNAVAILABLE.
        """
        state = self._choose(fingerprint) if self._group.is_main_process else None
        step = self._group.broadcast(state.step if state else NO_STEP)
        return state if self._group.is_main_process or step == NO_STEP else self._read_chosen(step)

    def _read_chosen(self, step: int) -> ResumeState:
        state = self._read(step)
        if state is None:
            raise StageFailure(
                FailureReason.STORE_UNAVAILABLE,
                f"rank 0 resumes from {self._folder.uri}/{_name(STATE, step)}, which rank"
                f" {self._group.rank} cannot read; the pod's log says why. Both must use the same store: if"
                " it is on a claim, check that all nodes share its volume (ReadWriteMany)",
                ExitCode.STORE_UNAVAILABLE,
            )
        self._known = [state]
        return state

    def _choose(self, fingerprint: Fingerprint) -> ResumeState | None:
        self._known = []
        for step in sorted(self._steps(STATE), reverse=True):
            state = self._read(step)
            if state is not None:
                differences = fingerprint.differences(state.ledger.fingerprint)
                if differences:
                    raise StageFailure(
                        FailureReason.FINGERPRINT_MISMATCH,
                        f"{self.uri(state)} belongs to a run with another config ({'; '.join(differences)});"
                        " create a new FineTuneJob for a changed run",
                    )
                self._known = [state]
                return state
        return None

    def save(self, step: int, ledger: RunLedger, fill: Callable[[Path], None]) -> ResumeState:
        """Save the state after `step`; remove older states, and weights that no state needs.

        Raises StageFailure (STORE_UNAVAILABLE).
        """
        snapshot = ledger.model_copy(deep=True)

        def fill_with_ledger(target: Path) -> None:
            fill(target)
            (target / LEDGER).write_text(snapshot.model_dump_json(), encoding="utf-8")

        name = _name(STATE, step)
        save_folder(self._folder, name, fill_with_ledger)
        saved = ResumeState(step, self._folder.path / name, snapshot)
        self._known = [saved, *(state for state in self._known if state.step != step)][:KEPT_STATES]
        self._remove_unneeded()
        return saved

    def save_best(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save the weights that the next saved ledger records as the best. Raises StageFailure."""
        save_folder(self._folder, _name(BEST, step), fill)

    def save_kept(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save weights that the next saved ledger records as kept. Raises StageFailure."""
        save_folder(self._folder, _name(KEPT_STEPS, step), fill)

    def kept_folder(self, step: int) -> Path:
        """Folder of the weights that are kept for a step."""
        return self._folder.path / _name(KEPT_STEPS, step)

    def best_folder(self, step: int) -> Path:
        """Folder of the best weights, saved after a step."""
        return self._folder.path / _name(BEST, step)

    def uri(self, state: ResumeState) -> str:
        """URI of a state, for messages."""
        return f"{self._folder.uri}/{_name(STATE, state.step)}"

    def last_saved(self) -> str:
        """The newest state that this process has read or saved, for messages."""
        if not self._known:
            return "the base model"
        return f"step {self._known[0].step} in {self.uri(self._known[0])}"

    def last_good(self, ledger: RunLedger) -> str:
        """The last good state of a run, for messages.

        The newest state that this process has read or saved without a high loss; if there is none, the best
        weights of the ledger, or the weights that the run started from.
        """
        good = next((state for state in self._known if state.ledger.losses.high_steps == 0), None)
        if good is not None:
            return f"step {good.step} in {self.uri(good)}"
        if ledger.best is not None:
            return f"step {ledger.best.step} in {self._folder.uri}/{_name(BEST, ledger.best.step)}"
        return (
            "the base model" if ledger.fingerprint.parent is None else "the Checkpoint that it continues from"
        )

    def _read(self, step: int) -> ResumeState | None:
        name = _name(STATE, step)
        problem = find_problem(self._folder, name)
        folder = self._folder.path / name
        if problem is None:
            try:
                ledger = RunLedger.model_validate_json((folder / LEDGER).read_bytes())
            except (OSError, ValidationError) as error:
                problem = f"its {LEDGER} cannot be read: {error}"
            else:
                problem = self._problem_of_weights(ledger)
        if problem is not None:
            logger.warning("resume state %s/%s is ignored: %s", self._folder.uri, name, problem)
            return None
        return ResumeState(step, folder, ledger)

    def _problem_of_weights(self, ledger: RunLedger) -> str | None:
        named = [_name(KEPT_STEPS, kept.step) for kept in ledger.kept]
        if ledger.best is not None:
            named.append(_name(BEST, ledger.best.step))
        problems = (find_problem(self._folder, name) for name in named)
        return next((problem for problem in problems if problem is not None), None)

    def _remove_unneeded(self) -> None:
        steps = {state.step for state in self._known}
        best = {state.ledger.best.step for state in self._known if state.ledger.best is not None}
        kept = {kept.step for state in self._known for kept in state.ledger.kept}
        for parent, needed in ((STATE, steps), (BEST, best), (KEPT_STEPS, kept)):
            for step in self._steps(parent) - needed:
                self._folder.remove(_name(parent, step))

    def _steps(self, parent: str) -> set[int]:
        return {
            int(number)
            for name in self._folder.names(parent)
            if name.startswith(PREFIX) and (number := name.removeprefix(PREFIX)).isdecimal()
        }


def remove_states(folder: RunFolder) -> None:
    """Remove the states, which only an unfinished run needs.

    Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    for parent in (STATE, BEST, KEPT_STEPS):
        folder.remove(parent)


def _name(parent: str, step: int) -> str:
    return f"{parent}/{PREFIX}{step}"


def save_folder(folder: RunFolder, name: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, then rename it to `name`, replacing an existing folder.

    Raises StageFailure if it cannot be written or stored.
    """
    with folder.writable(name) as target:
        temporary = _unfinished(target)
        try:
            temporary.mkdir(parents=True)
            _fill(temporary, fill)
            durable.write_file(temporary / MANIFEST_NAME, Manifest.of(temporary).to_bytes())
            if target.exists():
                replaced = _unfinished(target)
                target.rename(replaced)
                shutil.rmtree(replaced)
            durable.move_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    folder.keep(name)


def find_problem(run: RunFolder, name: str) -> str | None:
    """Describe what is wrong with a saved folder; None if it is valid.

    Raises StageFailure (STORE_UNAVAILABLE), Preempted.
    """
    folder = run.load(name)
    # For a bucket the pod checks its copy, but messages must name the store's content.
    stored = Mount(run.uri, run.path)
    try:
        with run.mount.reachable(folder):
            try:
                content = read_file(folder / MANIFEST_NAME, folder)
            except FileNotFoundError:
                return f"it has no {MANIFEST_NAME}"
            verify_files(folder, Manifest.model_validate_json(content), named=stored.named)
    except ValidationError:
        return f"its {MANIFEST_NAME} is not a manifest"
    except StageFailure as failure:
        if failure.reason == FailureReason.STORE_UNAVAILABLE:
            raise
        return failure.message
    return None


def remove_unfinished(run: RunFolder, parent: str, prefix: str) -> None:
    """Remove unfinished folders of a killed pod from `parent`, whose final names start with `prefix`.

    Creates `parent` if it does not exist. Raises StageFailure (STORE_UNAVAILABLE).
    """
    folder = run.path / parent
    with run.mount.reachable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f".{prefix}*"):
            shutil.rmtree(leftover)


def _unfinished(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid.uuid4().hex}")


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    try:
        fill(folder)
    except (RuntimeError, SafetensorError) as error:
        # PyTorch and safetensors report a failed write like this, most often because the disk is full.
        raise OSError(str(error)) from error
