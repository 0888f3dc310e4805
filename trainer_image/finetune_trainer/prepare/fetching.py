"""The source's files, where this pod can read them: on a volume, or downloaded first."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_trainer.contract import ExitCode, FailureReason, PrepareConfig
from finetune_trainer.failure import StageFailure
from finetune_trainer.prepare.source import SUFFIXES, SourceFile, find_files, is_data
from finetune_trainer.remote.limits import SOURCE_BYTES
from finetune_trainer.remote.source import RemoteSource, Wanted
from finetune_trainer.store import RunFolder

DOWNLOAD: Final = "source"
"""Folder in the run's folder; what is left there by a pod that was stopped, the next one goes on with."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """What is to be read."""

    files: list[SourceFile]
    revision: str | None = None
    """The commit, of a source at the hub."""


@contextmanager
def readable_source(config: PrepareConfig, folder: RunFolder, stop: threading.Event) -> Iterator[Source]:
    """The files of the config's source, for as long as the block lasts.

    Raises StageFailure: SOURCE_NOT_FOUND, and of a remote source all that `RemoteSource` raises; Preempted.
    """
    uri = config.source_uri
    if config.source_path is not None:
        yield Source(find_files(Path(config.source_path), uri, stop))
        return
    remote = RemoteSource(
        Wanted(
            uri=uri,
            field="source",
            credentials=config.source_credentials,
            absent=FailureReason.SOURCE_NOT_FOUND,
            limit_bytes=SOURCE_BYTES,
        ),
        stop,
    )
    files = [file for file in remote.files if remote.is_file or is_data(file.name)]
    if not files:
        raise StageFailure(
            FailureReason.SOURCE_NOT_FOUND,
            f"{uri}: it has no file with one of the endings {' '.join(sorted(SUFFIXES))}; add the rows there",
            ExitCode.BAD_DATA,
        )
    logger.info("downloading %d files of %s", len(files), uri)
    with folder.writable(DOWNLOAD) as here:
        remote.download(files, here)
    try:
        yield Source([SourceFile(here / file.name, uri) for file in files], remote.revision)
    except StageFailure:
        folder.remove(DOWNLOAD)
        raise
    folder.remove(DOWNLOAD)
