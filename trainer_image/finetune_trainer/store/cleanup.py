# SPDX-License-Identifier: Apache-2.0
"""Removes the content of a deleted record or run from the store."""

import logging

from finetune_trainer.contract.configs import CleanupConfig
from finetune_trainer.store import Store

logger = logging.getLogger(__name__)


def cleanup(config: CleanupConfig, store: Store) -> None:
    """Remove the folder of an artifact or run, even if it is incomplete or missing.

    Raises StageFailure (STORE_UNAVAILABLE).
    """
    if config.artifact is not None:
        store.delete(config.artifact)
        logger.info("removed %s", store.uri(config.artifact))
    if config.run is not None:
        store.delete_run(config.run)
        logger.info("removed the folder of run %s", config.run)
