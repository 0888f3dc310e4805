# SPDX-License-Identifier: Apache-2.0
"""Provides models for serving pods, in the pod or in the model cache of the namespace.

Each model is verified before its folder gets its final name. It is copied from the store, or read in place in
the model cache or an OCI image. It is the same for both engines, except that vLLM needs files in addition.
Serving pods read whole models of the cache in place.
"""

import logging
import threading
from functools import partial
from pathlib import Path

from finetune_trainer.contract.serving import FetchConfig, FetchItem, FillConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.model.bundle import check_base_model, require_bundle
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.served_models import probe_folder
from finetune_trainer.serve.vllm.engine_files import check_loadable, write_engine_files
from finetune_trainer.store import DerivedRef, Store, open_store
from finetune_trainer.store.base import StoredRef, key_of, resolve_derived
from finetune_trainer.store.copies import CacheVolume, copy_artifact, verify_image
from finetune_trainer.store.download_lock import download_lock
from finetune_trainer.store.failures import convert_write_errors, verify_files

logger = logging.getLogger(__name__)


def run(config: FetchConfig) -> None:
    """Copy each item's folder and its probe's record to the destination, and verify each file on the way.

    A folder in the model cache or in an image is not copied: the destination has a link to it.

    Keeps folders that are already complete, so that a restarted pod fetches nothing twice. For vLLM, adds the
    files of its command line.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE,
    BASE_MODEL_MISMATCH, INTERNAL if the destination is not writable; for vLLM also INVALID_CONFIG and
    BASE_MODEL_INVALID.
    """
    store = open_store(config.store)
    cache = CacheVolume(config.cache) if config.cache is not None else None
    destination = Path(config.destination)
    for item in config.items:
        _check_folder(item)
        target, model = destination / item.folder, resolve_derived(item.artifact, item.merged)
        if item.in_cache and cache is not None:
            _link(cache.verified(model), target)
        elif item.in_cache and config.image is not None:
            _link(verify_image(config.image, store.manifest(model)), target)
        else:
            _fetch(store, model, target)
        if item.artifact.kind == "checkpoints":
            require_bundle(target, item.folder)
        _fetch_probe(store, item, probe_folder(destination, item.folder))
    base_model = next((item for item in config.items if item.artifact.kind == "models"), None)
    if base_model is not None:
        for item in config.items:
            check_base_model(destination / item.folder, base_model.artifact.digest)
    if config.engine == "VLLM":
        whole = base_model or config.items[0]
        adapters = [destination / item.folder for item in config.items if item != whole]
        for adapter in adapters:
            check_loadable(adapter, config.max_lora_rank)
        write_engine_files(destination, destination / whole.folder, adapters)


def _link(folder: Path, target: Path) -> None:
    """Replace the target by a link to the folder."""
    with convert_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(folder)
    logger.info("%s is read in place in %s", target.name, folder)


def _fetch(store: Store, ref: StoredRef, target: Path) -> None:
    """Copy a folder unless it is complete."""
    manifest = store.manifest(ref)
    with convert_write_errors(target):
        is_complete = _is_complete(target, manifest)
    if is_complete:
        logger.info("%s is already complete", target)
    else:
        copy_artifact(store, ref, target)


def _fetch_probe(store: Store, item: FetchItem, target: Path) -> None:
    if item.probe is None:
        return
    ref = DerivedRef(item.artifact, item.probe)
    if store.has(ref):
        _fetch(store, ref, target)
    else:
        logger.warning("%s was deleted: the model is not compared with it", store.uri(ref))


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    path = folder / MANIFEST_NAME
    if not path.exists() or path.read_bytes() != manifest.to_bytes():
        return False
    try:
        verify_files(folder, manifest)
    except StageFailure as failure:
        logger.warning("%s; fetching it again", failure.message)
        return False
    return True


def _check_folder(item: FetchItem) -> None:
    if Path(item.folder).name != item.folder or item.folder in ("", ".."):
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"items.folder: {item.folder!r} is not a plain folder name"
        )


def fill_cache(config: FillConfig) -> None:
    """Copy a model that the cache does not have, or has with a damaged file, and verify what was written.

    If several endpoints fill the cache at the same time, one of them copies the model and the others wait.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE.
    """
    store, cache = open_store(config.store), CacheVolume(config.cache)
    model = resolve_derived(config.artifact, config.merged)
    name, find = key_of(model).replace("/", "-"), partial(cache.find, model)
    with download_lock(name, config.owner.uid, find, cache.notes, threading.Event()) as found:
        if found is None:
            cache.fill(model, store)
    logger.info("the model cache has %s", name)
