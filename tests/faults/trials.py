"""A chain to be run: what happens in it, and to which operator."""

from dataclasses import dataclass

from finetune_operator.engine.listing import RELIST_SECONDS
from tests.faults.faults import Disturbance
from tests.faults.releases import Edit

PATIENCE_SECONDS = 120.0
"""Within which a chain comes from one step to the next, even on a busy machine."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One chain.

    Attributes:
        disturbance: what happens; None for nothing.
        edits: in what the operator differs from the one in this repository.
        relist_seconds: between the operator's lists, which make up for lost events.
        patience_seconds: after which a step that is not done counts as never done.
    """

    disturbance: Disturbance | None = None
    edits: tuple[Edit, ...] = ()
    patience_seconds: float = PATIENCE_SECONDS
    relist_seconds: int = RELIST_SECONDS

    def __str__(self) -> str:
        return str(self.disturbance)
