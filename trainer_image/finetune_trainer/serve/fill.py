# SPDX-License-Identifier: Apache-2.0
"""Fill the model cache of a namespace, from which its serving pods read whole models in place."""

import logging
import threading
from functools import partial

from finetune_trainer.contract.serving import FillConfig
from finetune_trainer.store import open_store
from finetune_trainer.store.base import derived_or_own, key_of
from finetune_trainer.store.copies import CacheVolume
from finetune_trainer.store.download_lock import download_lock

logger = logging.getLogger(__name__)


def fill_cache(config: FillConfig) -> None:
    """Copy a model that the cache does not have, or has with a damaged file, and verify what was written.

    If several endpoints fill the cache at the same time, one of them copies the model and the others wait.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE.
    """
    store, cache = open_store(config.store), CacheVolume(config.cache)
    model = derived_or_own(config.artifact, config.merged)
    name, find = key_of(model).replace("/", "-"), partial(cache.find, model)
    with download_lock(name, config.owner.uid, find, cache.notes, threading.Event()) as found:
        if found is None:
            cache.fill(model, store)
    logger.info("the model cache has %s", name)
