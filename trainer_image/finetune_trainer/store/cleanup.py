"""Remove what a deleted record or run left in the store."""

import logging

from finetune_trainer.contract.configs.cleanup import CleanupConfig
from finetune_trainer.store import Store

logger = logging.getLogger(__name__)


def cleanup(config: CleanupConfig, store: Store) -> None:
    """Remove the folder of an artifact or run, also where it is incomplete or not there at all.

    Raises StageFailure (STORE_UNAVAILABLE).
    """
    if config.artifact is not None:
        store.delete(config.artifact)
        logger.info("%s is removed", store.uri(config.artifact))
    if config.run is not None:
        store.delete_run(config.run)
        logger.info("the folder of run %s is removed", config.run)
