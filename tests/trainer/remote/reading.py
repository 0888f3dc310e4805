# SPDX-License-Identifier: Apache-2.0
"""Opens sources over the network, and prepares them as a pod does."""

import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.references import SecretMount, StoreConfig
from finetune_trainer.contract.results import PrepareResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.prepare import stage
from finetune_trainer.remote.source import RemoteSource, SourceRequest
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import open_store
from tests.trainer.preparing import OF_SOURCE, OWNER, RUN


def source(
    uri: str,
    credentials: SecretMount | None = None,
    *,
    stop: threading.Event | None = None,
    **wanted: Any,
) -> RemoteSource:
    """Open a source of rows."""
    settings = {"absent": FailureReason.SOURCE_NOT_FOUND, "limit_bytes": 1 << 30, **wanted}
    return RemoteSource(
        SourceRequest(uri=uri, field="source", credentials=credentials, **settings), stop or threading.Event()
    )


def read(folder: Path, uri: str, credentials: SecretMount | None = None, **wanted: Any) -> dict[str, bytes]:
    """Download a source into `folder`. Returns the contents of its files by name."""
    found = source(uri, credentials, **wanted)
    found.download(found.files, folder)
    return {file.name: (folder / file.name).read_bytes() for file in found.files}


def failure(folder: Path, uri: str, credentials: SecretMount | None = None, **wanted: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        read(folder, uri, credentials, **wanted)
    return caught.value


def prepare(root: Path, uri: str, credentials: SecretMount | None = None, **settings: Any) -> PrepareResult:
    """Run the stage with a mounted store below `root`."""
    store = StoreConfig(uri="pvc://artifacts", path=str(root / "store"))
    of_source = {name: settings.pop(name) for name in OF_SOURCE if name in settings}
    source = SourceConfig(uri=uri, credentials=credentials, **of_source)
    config = PrepareConfig(owner=OWNER, run=RUN, store=store, sources=(source,), **settings)
    context = StageContext(open_store(store), Reporter(None, OWNER, "prepare"), Stop())
    return stage.run(config, context)
