"""Remove what a deleted record stood for from the store."""

import logging

from finetune_trainer.contract import CleanupConfig
from finetune_trainer.store import Store

logger = logging.getLogger(__name__)


def cleanup(config: CleanupConfig, store: Store) -> None:
    """Remove the artifact's folder, also where it is incomplete or not there at all.

    Raises StageFailure (STORE_UNAVAILABLE).
    """
    store.delete(config.artifact)
    logger.info("%s is removed", store.uri(config.artifact))
