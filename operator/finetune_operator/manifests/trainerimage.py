# SPDX-License-Identifier: Apache-2.0
"""Trainer image of a pod, and the version of the contract that the image reads."""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_trainer.contract.base import CONTRACT_VERSION

FIRST_CONTRACT: Final = 1
"""Contract of releases that did not record it on their Jobs."""
MIN_SPREAD_CONTRACT: Final = 2
"""Contract of the first trainer that spreads a model over several devices."""

MIN_EVALUATION_CONTRACT: Final = 2
"""Contract of the first trainer that works for an Evaluation, and measures on every split."""


@dataclass(frozen=True, slots=True)
class TrainerImage:
    """A trainer image and its contract."""

    image: str
    contract: int

    @property
    def spreads_models(self) -> bool:
        """Whether evaluation and the engine spread the layers of a model over the devices of a pod."""
        return self.contract >= MIN_SPREAD_CONTRACT


def trainer_of(profile: ComputeProfile | None, default_image: str) -> TrainerImage:
    """The trainer image of the profile, or that of the operator.

    `images.trainerContract` belongs to `images.trainer`. Without it, an image reads the operator's version of
    the contract, as the operator's own image does.
    """
    own = profile.spec.images.trainer if profile is not None else None
    if profile is None or own is None:
        return TrainerImage(default_image, CONTRACT_VERSION)
    return TrainerImage(own, profile.spec.images.trainer_contract or CONTRACT_VERSION)
