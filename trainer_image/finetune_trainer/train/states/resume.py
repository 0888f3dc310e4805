"""Resume states of a run: `step-N` folders, the newest valid one wins, the last two are kept.

Like an artifact of the store, such a folder is complete when its `manifest.json` is there, and it is forced
to the disk before it gets its name.
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
"""What the leader says in place of a step where there is no state."""
BEST: Final = "best"
KEPT_STEPS: Final = "kept"
PREFIX: Final = "step-"
LEDGER: Final = "ledger.json"
KEPT_STATES: Final = 2

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumeState:
    """Everything needed to go on after a step."""

    step: int
    folder: Path
    ledger: RunLedger


class ResumeStates:
    """The states in a run's folder, and the weights that their ledgers name.

    `state/step-N` has weights, optimizer, scheduler, random numbers and the ledger; `best/step-N` has the
    weights that a ledger's `best` stands for, in the form in which they are published, and `kept/step-N`
    those of its `kept` steps.
    """

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._known: list[ResumeState] = []
        """Valid states, the newest first."""
        if group.is_main_process:
            for parent in (STATE, BEST, KEPT_STEPS):
                remove_unfinished(folder, parent, PREFIX)

    def newest(self, fingerprint: Fingerprint) -> ResumeState | None:
        """The newest valid state; one that is not is logged and left out.

        The leader chooses it, and the others read the same.
        Raises StageFailure: FINGERPRINT_MISMATCH where it is of another run; STORE_UNAVAILABLE.
        """
        state = self._choose(fingerprint) if self._group.is_main_process else None
        step = self._group.broadcast(state.step if state else NO_STEP)
        return state if self._group.is_main_process or step == NO_STEP else self._read_chosen(step)

    def _read_chosen(self, step: int) -> ResumeState:
        state = self._read(step)
        if state is None:
            raise StageFailure(
                FailureReason.STORE_UNAVAILABLE,
                f"rank 0 goes on from {self._folder.uri}/{_name(STATE, step)}, which rank"
                f" {self._group.rank} cannot read: the pod's log says why. Both have to see the same store;"
                " of a claim, check that its volume is shared by all nodes (ReadWriteMany)",
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
                        " a changed run needs a new FineTuneJob",
                    )
                self._known = [state]
                return state
        return None

    def save(self, step: int, ledger: RunLedger, fill: Callable[[Path], None]) -> ResumeState:
        """Save the state after `step`; older ones and weights that no kept state needs are removed.

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
        self._forget()
        return saved

    def save_best(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save the weights that the next saved ledger calls the best. Raises StageFailure."""
        save_folder(self._folder, _name(BEST, step), fill)

    def save_kept(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save weights that the next saved ledger names among the kept ones. Raises StageFailure."""
        save_folder(self._folder, _name(KEPT_STEPS, step), fill)

    def kept_folder(self, step: int) -> Path:
        """Where weights are that a ledger names among the kept ones."""
        return self._folder.path / _name(KEPT_STEPS, step)

    def best_folder(self, step: int) -> Path:
        """Where the best weights of a ledger are."""
        return self._folder.path / _name(BEST, step)

    def uri(self, state: ResumeState) -> str:
        """Where a state is kept, for messages."""
        return f"{self._folder.uri}/{_name(STATE, state.step)}"

    def last_saved(self) -> str:
        """The newest state that this process has read or saved, for messages."""
        if not self._known:
            return "the base model"
        return f"step {self._known[0].step} in {self.uri(self._known[0])}"

    def last_good(self, ledger: RunLedger) -> str:
        """What a run that went wrong can be gone back to, for messages.

        The newest state that this process has read or saved while the loss was as usual; where there is none,
        the best weights of the ledger, or what the run began with.
        """
        good = next((state for state in self._known if state.ledger.losses.high_steps == 0), None)
        if good is not None:
            return f"step {good.step} in {self.uri(good)}"
        if ledger.best is not None:
            return f"step {ledger.best.step} in {self._folder.uri}/{_name(BEST, ledger.best.step)}"
        return "the base model" if ledger.fingerprint.parent is None else "the Checkpoint it continues from"

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
            logger.warning("resume state %s/%s is not used: %s", self._folder.uri, name, problem)
            return None
        return ResumeState(step, folder, ledger)

    def _problem_of_weights(self, ledger: RunLedger) -> str | None:
        named = [_name(KEPT_STEPS, kept.step) for kept in ledger.kept]
        if ledger.best is not None:
            named.append(_name(BEST, ledger.best.step))
        problems = (find_problem(self._folder, name) for name in named)
        return next((problem for problem in problems if problem is not None), None)

    def _forget(self) -> None:
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
    """Remove what only an unfinished run needs. Raises StageFailure (STORE_UNAVAILABLE), Preempted."""
    for parent in (STATE, BEST, KEPT_STEPS):
        folder.remove(parent)


def _name(parent: str, step: int) -> str:
    return f"{parent}/{PREFIX}{step}"


def save_folder(folder: RunFolder, name: str, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into an empty folder, then give it its name; replaces what is there.

    Raises StageFailure where it cannot be written or kept.
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
    """What is wrong with a saved folder, or None. Raises StageFailure (STORE_UNAVAILABLE), Preempted."""
    folder = run.load(name)
    # Also in a bucket, of which the pod has a copy, it is the store's content that is wrong.
    stored = Mount(run.uri, run.path)
    try:
        with run.mount.reachable(folder):
            try:
                content = read_file(folder / MANIFEST_NAME, folder)
            except FileNotFoundError:
                return f"it has no {MANIFEST_NAME}"
            verify_files(folder, Manifest.model_validate_json(content), named=stored.named)
    except ValidationError:
        return f"its {MANIFEST_NAME} is no manifest"
    except StageFailure as failure:
        if failure.reason == FailureReason.STORE_UNAVAILABLE:
            raise
        return failure.message
    return None


def remove_unfinished(run: RunFolder, parent: str, prefix: str) -> None:
    """Remove what a killed pod left in `parent` of folders whose names begin with `prefix`.

    Makes `parent` if it is not there. Raises StageFailure (STORE_UNAVAILABLE).
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
        # How PyTorch and safetensors report a write that failed, most often for want of space.
        raise OSError(str(error)) from error
