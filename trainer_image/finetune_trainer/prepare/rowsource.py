"""The source's files, where this pod can read them: on a volume, or downloaded first."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.beneath import root_of
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.environment import SOURCE_MOUNT
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.data.files import ENDINGS, FileUnreadable, SourceFile, is_data
from finetune_trainer.data.unpacking import unpacking_budget
from finetune_trainer.manifest import digest_of
from finetune_trainer.prepare.finding import (
    find_files,
    is_pattern,
    matching,
    nothing_matches,
    unreadable,
)
from finetune_trainer.remote.limits import MAX_SOURCE_BYTES
from finetune_trainer.remote.remotefolder import RemoteFile
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

DOWNLOAD: Final = "source"
"""Folder in the run's folder; what is left there by a pod that was stopped, the next one goes on with."""

logger = logging.getLogger(__name__)


class MountedRows:
    """Files on a volume of the pod.

    `version` tells this content from another: by the files' names, sizes and times, and of a ConfigMap by its
    bytes, because the kubelet writes those anew for every pod.
    """

    revision = None

    def __init__(
        self, path: Path, uri: str, stop: threading.Event, *, limit_bytes: int | None = None
    ) -> None:
        root = root_of(path, SOURCE_MOUNT)
        self._files = find_files(path, uri, stop, root=root, limit_bytes=limit_bytes)
        is_configmap = uri.startswith("configmap://")
        try:
            listed = [
                [file.name, _content(file) if is_configmap else [file.size, file.modified]]
                for file in self._files
            ]
        except FileUnreadable as error:
            raise unreadable(uri, error) from error
        self.version = digest_of(canonical.encode(listed))

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:  # noqa: ARG002 - for the others
        """The files, for as long as the block lasts."""
        yield self._files


class RemoteRows:
    """Files that are read over the network: listed at once, downloaded when they are wanted.

    `revision` is the commit of a source at the hub; `version` is None where the server tells neither versions
    nor times.
    """

    def __init__(self, config: PrepareConfig, stop: threading.Event) -> None:
        uri, pattern = _divided(config.source_uri)
        self._uri = without_query(config.source_uri)
        self._limit_bytes = config.max_unpacked_bytes
        self._remote = RemoteSource(
            SourceRequest(
                uri=uri,
                field="source",
                credentials=config.source_credentials,
                absent=FailureReason.SOURCE_NOT_FOUND,
                limit_bytes=MAX_SOURCE_BYTES,
            ),
            stop,
        )
        self._files = self._chosen(pattern)
        self.revision = self._remote.revision
        self.version = self._remote.version(self._files)

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:
        """The files, downloaded into the run's folder and removed in the end; a stopped pod leaves them.

        Raises StageFailure as `RemoteSource`; Preempted.
        """
        logger.info("downloading %d files of %s", len(self._files), self._uri)
        with folder.writable(DOWNLOAD) as here:
            self._remote.download(self._files, here)
        try:
            budget = unpacking_budget(self._limit_bytes)
            yield [SourceFile(here / file.name, root=here, budget=budget) for file in self._files]
        except StageFailure:
            folder.remove(DOWNLOAD)
            raise
        folder.remove(DOWNLOAD)

    def _chosen(self, pattern: str | None) -> list[RemoteFile]:
        files = {file.name: file for file in self._remote.files}
        if pattern is not None:
            names, absence = matching(files, pattern), nothing_matches(pattern, files)
        elif self._remote.is_file:
            return list(files.values())
        else:
            names = [name for name in files if is_data(name)]
            absence = f"it has no file with one of the endings {ENDINGS}; add the rows there"
        if not names:
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, f"{self._uri}: {absence}", ExitCode.BAD_DATA)
        return [files[name] for name in names]


Rows = MountedRows | RemoteRows


def open_source(config: PrepareConfig, stop: threading.Event) -> Rows:
    """What the config's source is now.

    Raises StageFailure: SOURCE_NOT_FOUND, and of a remote source all that `RemoteSource` raises; Preempted.
    """
    if config.source_path is not None:
        path, limit = Path(config.source_path), config.max_unpacked_bytes
        return MountedRows(path, config.source_uri, stop, limit_bytes=limit)
    return RemoteRows(config, stop)


def without_query(uri: str) -> str:
    """The uri as messages have it: what follows the question mark of a web address may be a credential."""
    return uri.partition("?")[0] if uri.startswith("https://") else uri


def _divided(uri: str) -> tuple[str, str | None]:
    """The folder, and the pattern of names in it; a web server has no folders to look into."""
    parent, _, last = uri.rpartition("/")
    if uri.startswith("https://") or not is_pattern(last):
        return uri, None
    return parent, last


def _content(file: SourceFile) -> str:
    with file.as_stored() as content:
        return digest_of(content.read())
