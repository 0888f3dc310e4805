# SPDX-License-Identifier: Apache-2.0
"""Processes that work on the store alone: collect and cleanup.

`collect` reads the result of a stage whose pod, and with it the termination message, no longer exists.
`cleanup` removes the content of a deleted record or run.
"""

import logging

from finetune_trainer.contract.configs import CleanupConfig, CollectConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import Store

PROBE_NAME = "probe"
PROBE_BYTES = 1 << 20
"""Enough to detect a full disk, which often accepts a few more bytes."""


def collect(config: CollectConfig, store: Store) -> StageResult:
    """Return the stored result of stage `config.of` of the same run.

    With `config.probe`, also checks that the store accepts a file.
    Raises StageFailure: ARTIFACT_NOT_FOUND if the stage left no result, STORE_UNAVAILABLE.
    """
    if config.probe:
        with store.run_folder(config.run, config.of) as folder:
            folder.write(PROBE_NAME, bytes(PROBE_BYTES))
            folder.remove(PROBE_NAME)
    result = store.read_result(config.run, config.of)
    if result is None:
        raise StageFailure(
            FailureReason.ARTIFACT_NOT_FOUND,
            f"stage {config.of} of run {config.run} left no result in the store: it ended before it could"
            " write one; check the log of its pod, then create a new resource to run it again",
        )
    return result


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
