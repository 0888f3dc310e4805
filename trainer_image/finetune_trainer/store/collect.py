"""The result of a stage whose pod, and with it the termination message, is gone."""

from finetune_trainer.contract.configs.collect import CollectConfig
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import Store

PROBE_NAME = "probe"
PROBE_BYTES = 1 << 20
"""A full disk often takes a few bytes more."""


def collect(config: CollectConfig, store: Store) -> StageResult:
    """The stored result of stage `config.of` of the same run.

    With `config.probe` the store must also take a file.
    Raises StageFailure: ARTIFACT_NOT_FOUND where the stage left none, STORE_UNAVAILABLE.
    """
    if config.probe:
        with store.run_folder(config.run, config.of) as folder:
            folder.write(PROBE_NAME, bytes(PROBE_BYTES))
            folder.remove(PROBE_NAME)
    result = store.read_result(config.run, config.of)
    if result is None:
        raise StageFailure(
            FailureReason.ARTIFACT_NOT_FOUND,
            f"stage {config.of} of run {config.run} left no result in the store; it ended before it could"
            " write one: look at its pod's log, then make a new resource to run it again",
        )
    return result
