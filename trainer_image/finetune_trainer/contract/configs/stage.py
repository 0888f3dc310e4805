"""What the configs of all stages share."""

import hashlib
import json
from typing import Annotated

from pydantic import Field

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.references import Owner, ReportTarget, StoreConfig
from finetune_trainer.contract.results import StageResult


class StageConfig(Contract):
    """What every stage gets."""

    contract: int = CONTRACT_VERSION
    owner: Owner
    run: str
    """Folder under `runs/`: a FineTuneJob's uid, or a Dataset's uid, generation and number of the look."""
    store: StoreConfig
    report: ReportTarget | None = None
    nonce: Annotated[str | None, Field(json_schema_extra={"since": 2})] = None
    """Repeated in the result, which so belongs to the Job that was made with it."""

    @property
    def digest(self) -> str:
        """Of what the stage is to do: 64 hexadecimal digits.

        Without what may differ between two Jobs that do the same.
        """
        same = {
            key: value for key, value in self.to_dict().items() if key not in ("contract", "nonce", "report")
        }
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()

    def bind(self, result: StageResult) -> StageResult:
        """The result for the reader of this config's Job: in its version of the contract, with its nonce."""
        return result.model_copy(
            update={"contract": self.contract, "nonce": self.nonce, "config_digest": self.digest}
        )
