# SPDX-License-Identifier: Apache-2.0
"""Files of a source, on a volume of this pod or downloaded."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from finetune_trainer import canonical
from finetune_trainer.beneath import root_of
from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.environment import SOURCES_MOUNT
from finetune_trainer.contract.references import without_query
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.data.files import Budget, FileUnreadable, SourceFile, is_data, unpacking_budget
from finetune_trainer.manifest import digest_of
from finetune_trainer.prepare.finding import (
    CONFIGMAP,
    find_files,
    is_pattern,
    matching,
    no_data_files,
    nothing_matches,
    unreadable,
)
from finetune_trainer.remote.limits import MAX_SOURCE_BYTES
from finetune_trainer.remote.remotefolder import RemoteFile
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

DOWNLOAD: Final = "source"
"""Folder in the run's folder, followed by the number of the source. If a pod is stopped, the next pod resumes
the download from it."""

logger = logging.getLogger(__name__)


class MountedRows:
    """Files on a volume of the pod.

    `version` identifies the content by the names, sizes and modification times of the files. For a ConfigMap
    it hashes the bytes, because the kubelet writes the files anew for every pod.
    """

    revision = None

    def __init__(
        self,
        path: Path,
        uri: str,
        stop: threading.Event,
        *,
        number: int = 0,
        field: str = "source",
        budget: Budget | None = None,
    ) -> None:
        """`number` is that of the source, `field` the field of the spec that names it."""
        root = root_of(path, f"{SOURCES_MOUNT}/{number}")
        self._files = find_files(path, uri, stop, root=root, field=field, budget=budget)
        is_configmap = uri.startswith(CONFIGMAP)
        try:
            entries = [
                [file.name, _content(file) if is_configmap else [file.size, file.modified]]
                for file in self._files
            ]
        except FileUnreadable as error:
            raise unreadable(uri, error) from error
        self.version = digest_of(canonical.encode(entries))

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:  # noqa: ARG002 - as in RemoteRows
        """The files, until the block ends."""
        yield self._files


class RemoteRows:
    """Files of a remote source: listed at once, downloaded by `readable`.

    `revision` is the commit of a source at the hub. `version` is None if the server reports neither versions
    nor times.
    """

    def __init__(self, source: SourceConfig, number: int, budget: Budget, stop: threading.Event) -> None:
        uri, pattern = _split_pattern(source.uri)
        self._uri = without_query(source.uri)
        self._field = source.field
        self._budget = budget
        self._download = f"{DOWNLOAD}-{number}"
        self._remote = RemoteSource(
            SourceRequest(
                uri=uri,
                field=source.field,
                credentials=source.credentials,
                absent=FailureReason.SOURCE_NOT_FOUND,
                limit_bytes=MAX_SOURCE_BYTES,
            ),
            stop,
        )
        self._files = self._select(pattern)
        self.revision = self._remote.revision
        self.version = self._remote.version(self._files)

    @contextmanager
    def readable(self, folder: RunFolder) -> Iterator[list[SourceFile]]:
        """The files, downloaded into the run's folder until the block ends. A stopped pod leaves them.

        Raises StageFailure as `RemoteSource`; Preempted.
        """
        logger.info("downloading %d files of %s", len(self._files), self._uri)
        with folder.writable(self._download) as target:
            self._remote.download(self._files, target)
        try:
            yield [SourceFile(target / file.name, root=target, budget=self._budget) for file in self._files]
        except StageFailure:
            folder.remove(self._download)
            raise
        folder.remove(self._download)

    def _select(self, pattern: str | None) -> list[RemoteFile]:
        files = {file.name: file for file in self._remote.files}
        if pattern is not None:
            names, problem = matching(files, pattern), nothing_matches(pattern, files, self._field)
        elif self._remote.is_file:
            return list(files.values())
        else:
            names = [name for name in files if is_data(name)]
            problem = no_data_files()
        if not names:
            raise StageFailure(FailureReason.SOURCE_NOT_FOUND, f"{self._uri}: {problem}", ExitCode.BAD_DATA)
        return [files[name] for name in names]


Rows = MountedRows | RemoteRows


def open_sources(config: PrepareConfig, stop: threading.Event) -> list[Rows]:
    """Open the config's sources and list their files. All of them share the limit of unpacked bytes.

    Raises StageFailure: SOURCE_NOT_FOUND, and for a remote source whatever `RemoteSource` raises; Preempted.
    """
    budget = unpacking_budget(config.max_unpacked_bytes)
    return [_opened(source, number, budget, stop) for number, source in enumerate(config.sources)]


def _opened(source: SourceConfig, number: int, budget: Budget, stop: threading.Event) -> Rows:
    if source.path is None:
        return RemoteRows(source, number, budget, stop)
    return MountedRows(Path(source.path), source.uri, stop, number=number, field=source.field, budget=budget)


def _split_pattern(uri: str) -> tuple[str, str | None]:
    """The folder and the pattern of names in it. A web server cannot list folders."""
    parent, _, last = uri.rpartition("/")
    if uri.startswith("https://") or not is_pattern(last):
        return uri, None
    return parent, last


def _content(file: SourceFile) -> str:
    with file.as_stored() as content:
        return digest_of(content.read())
