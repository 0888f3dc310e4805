# SPDX-License-Identifier: Apache-2.0
"""Results of the stages of a chain."""

from finetune_trainer.contract.configs import CollectConfig, PrepareConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from tools.fakepods import succeeded


class Results:
    """All stages succeed; the pod that prepares the Dataset `silent` has no message, only a stored result."""

    def __init__(self, silent: str) -> None:
        self._silent = silent
        self._store: dict[tuple[str, str], StageResult] = {}

    def __call__(self, config: StageConfig) -> StageResult | None:
        """The result in the termination message of a pod with this config; None for no message."""
        if isinstance(config, CollectConfig):
            return config.bind(self._store[config.run, config.of])
        result = succeeded(config)
        self._store[config.run, result.stage] = result
        is_silent = isinstance(config, PrepareConfig) and config.owner.name == self._silent
        return None if is_silent else result
