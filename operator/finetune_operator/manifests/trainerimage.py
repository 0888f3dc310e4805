"""Which trainer image a pod runs, and which version of the contract that image reads."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_trainer.contract.base import CONTRACT_VERSION

FIRST_CONTRACT: Final = 1
"""What releases spoke that did not record the contract of the Jobs they made."""


@dataclass(frozen=True, slots=True)
class TrainerImage:
    """A trainer image."""

    image: str
    contract: int


def trainer_of(profile: ComputeProfile | None, default_image: str) -> TrainerImage:
    """The profile's own trainer, or the operator's.

    `spec.trainerContract` describes `spec.images.trainer`. The operator's own image reads the operator's
    version of the contract, whatever default is stored in the profile.
    """
    own = profile.spec.images.trainer if profile is not None else None
    if profile is None or own is None:
        return TrainerImage(default_image, CONTRACT_VERSION)
    return TrainerImage(own, profile.spec.trainer_contract)
