# SPDX-License-Identifier: Apache-2.0
"""Resume states of a run in `step-N` folders: training resumes from the newest valid one; two are kept.

Like an artifact of the store, such a folder is complete if it has a `manifest.json`. It is synced to disk
before it is renamed to its final name. A state is written in the background, while training continues.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from pydantic import RootModel, ValidationError

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.distributed.process_group import ALONE, Group
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder
from finetune_trainer.store.file_writing import WriteFile, written
from finetune_trainer.train.state_folders import (
    BEST,
    KEPT_STEPS,
    LEDGER,
    PREFIX,
    STATE,
    filter_needed_files,
    find_problem,
    folder_name,
    read_manifest,
    remove_unfinished,
    save_files,
    save_folder,
    write_files,
)
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger

POLL_SECONDS: Final = 0.02


@dataclass(frozen=True)
class StateSnapshot:
    """This process's files of a state."""

    files: Mapping[str, WriteFile]
    is_copy: bool
    """Whether training may continue before the files are written."""
    is_sharded: bool = False
    """Whether each process has files of its own; otherwise rank 0 has all."""


class PendingSave:
    """Runs `save` in a thread. `save` gets this object, and reports when the files are written."""

    def __init__(self, save: Callable[["PendingSave"], None]) -> None:
        self._save = save
        self._written = threading.Event()
        self._abandoned = threading.Event()
        self._error: BaseException | None = None
        # A daemon: a process that lost its peers must not wait for it.
        self._thread = threading.Thread(target=self._run, name="save", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether the state is saved, or saving has failed."""
        return not self._thread.is_alive()

    @property
    def is_abandoned(self) -> bool:
        """Whether the state must not wait for other processes any more."""
        return self._abandoned.is_set()

    def report_written(self) -> None:
        """Called by `save` when it has written the files."""
        self._written.set()

    def wait_for_files(self) -> None:
        """Wait until the files are written, or saving has failed."""
        self._written.wait()

    def wait(self) -> None:
        """Wait until the state is saved. Raises the error of `save`."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def end(self, *, abandon: bool) -> None:
        """Wait until the thread has ended; with `abandon`, it stops waiting for other processes."""
        if abandon:
            self._abandoned.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._save(self)
        except BaseException as error:  # noqa: BLE001 - `wait` raises it
            self._error = error
        finally:
            self._written.set()


class _Entries(RootModel[tuple[FileEntry, ...]]):
    """What a process sends to rank 0 when it has stored its files."""


def save_snapshot(
    pending: PendingSave, folder: RunFolder, name: str, snapshot: StateSnapshot, *, session: str, group: Group
) -> bool:
    """Save the folder `name`, which is valid when the files of all processes are stored.

    Processes exchange sizes and hashes through the store of the rendezvous, since collectives belong to the
    main thread. Returns false if the save was abandoned. Raises StageFailure (STORE_UNAVAILABLE), DistError.
    """
    if not snapshot.is_sharded:
        if group.is_main_process:
            save_files(folder, name, snapshot.files)
        return True
    with folder.part(name, session) as part:
        entries = write_files(part, snapshot.files)
        pending.report_written()
        folder.keep_part(name, part, entries)
        if not group.is_main_process:
            group.post(_key(name, group.rank), _Entries(tuple(entries)).model_dump_json().encode())
            return True
        for rank in range(1, group.size):
            content = _receive_entries(group, _key(name, rank), pending)
            if content is None:
                return False
            entries.extend(_Entries.model_validate_json(content).root)
        folder.complete(name, part, Manifest(files=tuple(sorted(entries, key=lambda each: each.path))))
    return True


def _receive_entries(group: Group, key: str, pending: PendingSave) -> bytes | None:
    """Wait for what another process posts; None if the save is abandoned."""
    while (content := group.take_post(key)) is None:
        if pending.is_abandoned:
            return None
        threading.Event().wait(POLL_SECONDS)
    return content


def _key(name: str, rank: int) -> str:
    return f"saved/{name}/{rank}"


NO_STEP: Final = -1
"""What rank 0 broadcasts instead of a step if there is no state."""
KEPT_STATES: Final = 2
SESSION_BITS: Final = 62

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

    Creating an object is collective.
    """

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._known: list[ResumeState] = []
        """States that this process has read or saved, newest first."""
        self._session = f"{group.broadcast(secrets.randbits(SESSION_BITS)):x}"
        self._pending: PendingSave | None = None
        if group.is_main_process:
            for parent in (STATE, BEST, KEPT_STEPS):
                remove_unfinished(folder, parent, PREFIX)

    def newest(self, fingerprint: Fingerprint) -> ResumeState | None:
        """Return the newest valid state; invalid ones are logged and skipped. Collective.

        Rank 0 proposes states, newest first. All processes check the files that they read.
        Raises StageFailure: FINGERPRINT_MISMATCH if it belongs to another run; STORE_UNAVAILABLE.
        """
        group, self._known = self._group, []
        for parent in (BEST, KEPT_STEPS):
            self._steps(parent)  # list a bucket now, so that a save in an outage need not wait for it
        steps = sorted(self._steps(STATE), reverse=True) if group.is_main_process else []
        while (step := group.broadcast(steps.pop(0) if steps else NO_STEP)) != NO_STEP:
            state, problem = self._read(step)
            if state is not None and group.is_main_process:
                self._require_same_run(state, fingerprint)
            if group.broadcast(int(state is not None)) and self._manifest(step) is None:
                raise self._not_shared(step)
            if not group.any(state is None):
                self._known = [state] if state is not None else []
                return state
            problem = problem or "another process cannot read its files"
            logger.warning(
                "resume state %s/%s is ignored: %s", self._folder.uri, folder_name(STATE, step), problem
            )
        return None

    def _not_shared(self, step: int) -> StageFailure:
        return StageFailure(
            FailureReason.STORE_UNAVAILABLE,
            f"rank 0 resumes from {self._folder.uri}/{folder_name(STATE, step)}, which rank"
            f" {self._group.rank} cannot read; the pod's log says why. Both must use the same store: if"
            " it is on a claim, check that all nodes share its volume (ReadWriteMany)",
            ExitCode.STORE_UNAVAILABLE,
        )

    def _require_same_run(self, state: ResumeState, fingerprint: Fingerprint) -> None:
        differences = fingerprint.differences(state.ledger.fingerprint)
        if differences:
            raise StageFailure(
                FailureReason.FINGERPRINT_MISMATCH,
                f"{self.uri(state)} belongs to a run with another config ({'; '.join(differences)});"
                " create a new FineTuneJob for a changed run",
            )

    def begin_save(
        self,
        step: int,
        ledger: RunLedger,
        collect: Callable[[], StateSnapshot],
        on_saved: Callable[[str], None],
    ) -> None:
        """Begin to save the state after `step`; then remove older states, and weights that no state needs.

        Waits only for an earlier save, and for the files of a snapshot that is not a copy. `on_saved` is
        called on rank 0, by another thread, with the URI of the complete state. Collective, as `collect`.
        Raises StageFailure (STORE_UNAVAILABLE), also for an earlier save.
        """
        self._wait()  # first, so that there is one copy in memory
        snapshot = collect()
        copied = ledger.model_copy(deep=True)
        if self._group.is_main_process:
            content = written(copied.model_dump_json().encode())
            snapshot = replace(snapshot, files={**snapshot.files, LEDGER: content})

        def save(pending: PendingSave) -> None:
            name = folder_name(STATE, step)
            is_saved = save_snapshot(
                pending, self._folder, name, snapshot, session=self._session, group=self._group
            )
            if is_saved and self._group.is_main_process:
                saved = ResumeState(step, self._folder.path / name, copied)
                self._known = [saved, *(each for each in self._known if each.step != step)][:KEPT_STATES]
                self._remove_unneeded(step)
                on_saved(self.uri(saved))

        self._pending = PendingSave(save)
        if not snapshot.is_copy:
            self._pending.wait_for_files()

    def check_save(self) -> None:
        """Raise the failure of a save in the background, if it has failed."""
        if self._pending is not None and self._pending.is_done:
            self._wait()

    def finish_save(self) -> None:
        """Wait until the last begun state is saved. Collective. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._wait()
        self._group.broadcast(0)  # a barrier: no process exits before the state is saved

    def close(self, *, peer_lost: bool = False) -> None:
        """Let the last save end, or abandon it if another process is lost. Never raises. Not collective."""
        if self._pending is not None:
            self._pending.end(abandon=peer_lost)
            self._pending = None

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()

    def save_best(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save the weights that the next saved ledger records as the best. Raises StageFailure."""
        save_folder(self._folder, folder_name(BEST, step), fill)

    def save_kept(self, step: int, fill: Callable[[Path], None]) -> None:
        """Save weights that the next saved ledger records as kept. Raises StageFailure."""
        save_folder(self._folder, folder_name(KEPT_STEPS, step), fill)

    def kept_folder(self, step: int) -> Path:
        """Folder of the weights that are kept for a step."""
        return self._folder.path / folder_name(KEPT_STEPS, step)

    def best_folder(self, step: int) -> Path:
        """Folder of the best weights, saved after a step."""
        return self._folder.path / folder_name(BEST, step)

    def uri(self, state: ResumeState) -> str:
        """URI of a state, for messages."""
        return f"{self._folder.uri}/{folder_name(STATE, state.step)}"

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
            return f"step {ledger.best.step} in {self._folder.uri}/{folder_name(BEST, ledger.best.step)}"
        return (
            "the base model" if ledger.fingerprint.parent is None else "the Checkpoint that it continues from"
        )

    def _read(self, step: int) -> tuple[ResumeState | None, str | None]:
        """Read a state, or say what is wrong with it. Checks the files that this process reads."""
        name = folder_name(STATE, step)
        manifest = self._manifest(step)
        paths = [entry.path for entry in manifest.files] if manifest else []
        problem = find_problem(self._folder, name, filter_needed_files(self._group, paths))
        if problem is not None:
            return None, problem
        folder = self._folder.path / name
        try:
            ledger = RunLedger.model_validate_json((folder / LEDGER).read_bytes())
        except (OSError, ValidationError) as error:
            return None, f"its {LEDGER} cannot be read: {error}"
        # Only rank 0 reads the weights that the ledger names.
        problem = self._problem_of_weights(ledger) if self._group.is_main_process else None
        return (ResumeState(step, folder, ledger), None) if problem is None else (None, problem)

    def _manifest(self, step: int) -> Manifest | None:
        return read_manifest(self._folder, folder_name(STATE, step))

    def _problem_of_weights(self, ledger: RunLedger) -> str | None:
        named = [folder_name(KEPT_STEPS, kept.step) for kept in ledger.kept]
        if ledger.best is not None:
            named.append(folder_name(BEST, ledger.best.step))
        problems = (find_problem(self._folder, name) for name in named)
        return next((problem for problem in problems if problem is not None), None)

    def _remove_unneeded(self, saved: int) -> None:
        """Remove what is older than the state `saved`, and not needed; training may write newer weights."""
        steps = {state.step for state in self._known}
        best = {state.ledger.best.step for state in self._known if state.ledger.best is not None}
        kept = {kept.step for state in self._known for kept in state.ledger.kept}
        for parent, needed in ((STATE, steps), (BEST, best), (KEPT_STEPS, kept)):
            for step in self._steps(parent) - needed:
                if step <= saved:
                    self._folder.remove(folder_name(parent, step))

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
