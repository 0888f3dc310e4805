# SPDX-License-Identifier: Apache-2.0
"""The store in a bucket, through fsspec, with a scratch folder in the pod.

Objects cannot be renamed, so an artifact is uploaded to its final keys, and is valid once its manifest, the
last upload, exists. Stages read it from a verified copy in the scratch folder, made once per pod.
"""

import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from typing_extensions import override

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef, StoreConfig
from finetune_trainer.manifest import MANIFEST_NAME, FileEntry, Manifest, OnBytes, ignore_bytes
from finetune_trainer.store.base import STAGING, STALE_STAGING_SECONDS, Store
from finetune_trainer.store.bucketobjects import BucketObjects, open_bucket_objects
from finetune_trainer.store.bucketrun import BucketRunFolder
from finetune_trainer.store.copying import copy_artifact
from finetune_trainer.store.failures import corrupt, pod_volume_full, writable
from finetune_trainer.store.keys import Place, StoredRef, key_of, ref_to, run_key
from finetune_trainer.store.podcopies import PodCopies

logger = logging.getLogger(__name__)


def open_bucket(config: StoreConfig, stop: threading.Event, process: int | None = None) -> "BucketStore":
    """Open the store in a bucket, with the credentials that the config names.

    `process` is the rank among several processes of the pod.

    Raises StageFailure: INVALID_CREDENTIALS, INVALID_CONFIG, STORE_UNAVAILABLE.
    """
    objects = open_bucket_objects(config, stop)
    objects.find(STAGING)  # fails early if the bucket does not exist or cannot be read
    copies = Path(config.path)
    return BucketStore(
        config.uri,
        objects,
        copies if not process else copies / f"local-rank-{process}",
        PodCopies(copies, stop),
    )


class BucketStore(Store):
    """Artifacts and run folders below one prefix of a bucket."""

    reads_in_place = False

    def __init__(self, uri: str, objects: BucketObjects, scratch: Path, copies: PodCopies) -> None:
        """`scratch` is this process's folder on the pod's own volume."""
        super().__init__(uri)
        self._objects = objects
        self._scratch = scratch
        self._copies = copies

    @override
    def artifact(self, ref: StoredRef, *, verify: bool = False) -> Path:
        return self._copies.get(key_of(ref), partial(copy_artifact, self, ref))

    @override
    def chunks(self, ref: StoredRef, entry: FileEntry) -> Iterator[bytes]:
        key = f"{key_of(ref)}/{entry.path}"
        size = self._objects.size(key)
        if size is None:
            raise corrupt(f"{self._uri}/{key}", "it is missing")
        if size != entry.bytes:
            raise corrupt(f"{self._uri}/{key}", f"it has {size} bytes, not {entry.bytes}")
        yield from self._objects.chunks(key, size)

    @override
    @contextmanager
    def staging(self) -> Iterator[Path]:
        folder = self._scratch / STAGING / uuid.uuid4().hex
        with writable(folder):
            folder.mkdir(parents=True)
        try:
            yield folder
        except OSError as error:
            # The error of a full disk has no file name.
            if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(self._scratch):
                raise pod_volume_full(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @override
    def publish(self, place: Place, staging: Path, on_bytes: OnBytes = ignore_bytes) -> Digest:
        with writable(staging):
            manifest = Manifest.of(staging)
            (staging / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        ref = ref_to(place, manifest.digest)
        if self.has(ref):
            on_bytes(manifest.total_bytes)
        else:
            self._remove_stale_uploads()
            with self._upload_noted(ref):
                self._objects.put_folder(staging, key_of(ref), manifest, on_bytes)
        self._copies.keep(key_of(ref), staging)
        return manifest.digest

    @override
    def delete(self, ref: ArtifactRef) -> None:
        self._objects.remove(key_of(ref))

    @override
    def delete_run(self, run: str) -> None:
        self._objects.remove(run_key(run))

    @override
    def run_folder(self, run: str, stage: str) -> BucketRunFolder:
        key = run_key(run, stage)
        return BucketRunFolder(f"{self._uri}/{key}", self._scratch / key, self._objects.below(key))

    @override
    def _read(self, key: str) -> bytes | None:
        return self._objects.read(key)

    @override
    def _write(self, key: str, content: bytes) -> None:
        self._objects.write(key, content)

    @override
    def _place(self, ref: StoredRef) -> str:
        return self.uri(ref)

    @contextmanager
    def _upload_noted(self, ref: StoredRef) -> Iterator[None]:
        """Keep a note in the bucket while the artifact has objects but no manifest."""
        note = f"{STAGING}/{uuid.uuid4().hex}"
        self._objects.write(note, key_of(ref).encode())
        yield
        self._objects.remove(note)

    def _remove_stale_uploads(self) -> None:
        """Remove unfinished uploads of killed pods, unless another pod has started the same upload."""
        stale, fresh = {}, set()
        oldest = datetime.now(UTC) - timedelta(seconds=STALE_STAGING_SECONDS)
        for note, modified in self._objects.modified(STAGING).items():
            content = self._objects.read(note)
            if content is None:  # another pod has finished this upload
                continue
            if modified < oldest:
                stale[note] = content.decode()
            else:
                fresh.add(content.decode())
        for note, key in stale.items():
            if key not in fresh and not self._objects.read(f"{key}/{MANIFEST_NAME}"):
                logger.info("removing the unfinished upload of %s/%s", self._uri, key)
                self._objects.remove(key)
            self._objects.remove(note)
