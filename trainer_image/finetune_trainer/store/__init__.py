# SPDX-License-Identifier: Apache-2.0
"""The store: content-addressed artifacts, and folders of runs, on a volume or in a bucket.

Layout of every store: `datasets/<digits>/`, `models/<digits>/`, `checkpoints/<digits>/` and
`runs/<run>/<stage>/`. An artifact is complete once it has its `manifest.json`, which is written last. What
was derived from an artifact is in `derived/<digits>/` of its folder, and is removed with it.
"""

import threading
from pathlib import Path
from typing import Final

from finetune_trainer.contract.references import StoreConfig
from finetune_trainer.store.base import ArtifactKind, DerivedRef, RunFolder, Store
from finetune_trainer.store.mounted import MountedStore

__all__ = ["ArtifactKind", "DerivedRef", "RunFolder", "Store", "open_store"]

BUCKET_SCHEMES: Final = ("s3://", "gs://", "abfs://")


def open_store(
    config: StoreConfig, stop: threading.Event | None = None, *, process: int | None = None
) -> Store:
    """Open the store of a config. `stop` ends a long download with Preempted.

    `process` is the rank among several processes of the pod: they share the copies of what is in a bucket,
    and each has its own folders for what it writes.
    Raises StageFailure: INVALID_CREDENTIALS, INVALID_CONFIG, STORE_UNAVAILABLE; Preempted.
    """
    if not config.uri.startswith(BUCKET_SCHEMES):
        return MountedStore(config.uri, Path(config.path))
    # The clients of object stores take half a second to import.
    from finetune_trainer.store.bucket import open_bucket

    return open_bucket(config, stop or threading.Event(), process)
