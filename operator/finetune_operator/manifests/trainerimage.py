# SPDX-License-Identifier: Apache-2.0
"""Trainer image of a pod, and the version of the contract that the image reads."""

from dataclasses import dataclass

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_trainer.contract.base import CONTRACT_VERSION


@dataclass(frozen=True, slots=True)
class TrainerImage:
    """A trainer image and its contract."""

    image: str
    contract: int


def trainer_of(profile: ComputeProfile | None, default_image: str) -> TrainerImage:
    """The trainer image of the profile, or that of the operator.

    `images.trainerContract` belongs to `images.trainer`. Absent: the image reads the operator's version of
    the contract, as the operator's own image does.
    """
    own = profile.spec.images.trainer if profile is not None else None
    if profile is None or own is None:
        return TrainerImage(default_image, CONTRACT_VERSION)
    return TrainerImage(own, profile.spec.images.trainer_contract or CONTRACT_VERSION)
