# SPDX-License-Identifier: Apache-2.0
"""A state that is written while training continues."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import RootModel

from finetune_trainer.distributed.process_group import Group
from finetune_trainer.manifest import FileEntry, Manifest
from finetune_trainer.store import RunFolder
from finetune_trainer.store.file_writing import WriteFile
from finetune_trainer.train.states.folders import save_files, write_files

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
            content = _received(group, _key(name, rank), pending)
            if content is None:
                return False
            entries.extend(_Entries.model_validate_json(content).root)
        folder.complete(name, part, Manifest(files=tuple(sorted(entries, key=lambda each: each.path))))
    return True


def _received(group: Group, key: str, pending: PendingSave) -> bytes | None:
    """Wait for what another process posts; None if the save is abandoned."""
    while (content := group.take_post(key)) is None:
        if pending.is_abandoned:
            return None
        threading.Event().wait(POLL_SECONDS)
    return content


def _key(name: str, rank: int) -> str:
    return f"saved/{name}/{rank}"
