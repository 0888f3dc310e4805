"""The weights behind one model name of an endpoint, recorded by a Checkpoint or named by a pin."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.checkpoint import BaseModelRecord, Checkpoint
from finetune_operator.manifests.labels import STORE_CREDENTIALS
from finetune_trainer.contract.vocabulary import CheckpointType

CHECKPOINTS: Final = "/checkpoints/"
"""Between the store's uri and the 64 hexadecimal digits of the weights."""


@dataclass(frozen=True, slots=True)
class WeightsReference:
    """A folder in a store, known by its content."""

    uri: str
    digest: str
    type: CheckpointType
    checkpoint: str | None = None
    """Name of the record; None where a pin names the folder itself."""
    base_model: BaseModelRecord | None = None
    """What they were trained from; None where there is no record: the pod that fetches them compares."""
    credentials: str | None = None
    """Name of the Secret that opens their store."""

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "WeightsReference":
        """Those of a record."""
        spec = checkpoint.spec
        secret = checkpoint.metadata.annotations.get(STORE_CREDENTIALS)
        return cls(spec.uri, spec.digest, spec.type, checkpoint.name, spec.lineage.base_model, secret)

    @property
    def store(self) -> str:
        """uri of the store that they and their base model are in."""
        return self.uri.rpartition(CHECKPOINTS)[0]

    @property
    def label(self) -> str:
        """What messages call them."""
        return self.checkpoint or short_digest(self.digest)


def short_digest(digest: str) -> str:
    """Enough of a digest to recognise it in a message."""
    return digest[:19]
