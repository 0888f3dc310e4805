# SPDX-License-Identifier: Apache-2.0
"""Base of the configs of all stages."""

import hashlib
import json
from typing import ClassVar, Final

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import Owner, ReportTarget, StoreConfig
from finetune_trainer.contract.results import StageResult

STEP_TIMEOUT_SECONDS: Final = 1800
"""Default of `step_timeout_seconds`."""


class StageConfig(Contract):
    """Fields of every stage's config."""

    not_work: ClassVar[frozenset[str]] = frozenset({"contract", "nonce", "report", "accelerators"})
    """Wire names of the fields that may differ between two Jobs for the same work."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    run: str
    """Folder under `runs/`: the uid of a FineTuneJob, or uid, generation and check number of a Dataset."""
    store: StoreConfig
    report: ReportTarget | None = None
    nonce: str | None = None
    """Repeated in the result, which binds the result to the Job created with it."""
    accelerators: int = 0
    """CUDA devices that the pod requests; 0 if it requests none."""

    @property
    def digest(self) -> str:
        """SHA-256 of the work to do, as 64 hexadecimal digits.

        Excludes the fields of `not_work`.
        """
        work = {key: value for key, value in self.to_dict().items() if key not in self.not_work}
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()

    def bind(self, result: StageResult) -> StageResult:
        """Bind a result to this config's Job: set its contract version, nonce and config digest."""
        return result.model_copy(
            update={"contract": self.contract, "nonce": self.nonce, "config_digest": self.digest}
        )
