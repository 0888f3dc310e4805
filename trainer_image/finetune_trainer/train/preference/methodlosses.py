# SPDX-License-Identifier: Apache-2.0
"""The losses of the methods that train on preference data."""

from collections.abc import Mapping
from typing import Any, Final

from finetune_trainer.contract.methods import MethodType
from finetune_trainer.train.preference.dpo import DPO
from finetune_trainer.train.preference.kto import KTO
from finetune_trainer.train.preference.losses import PreferenceLoss
from finetune_trainer.train.preference.orpo import ORPO

LOSSES: Final[Mapping[MethodType, type[PreferenceLoss[Any]]]] = {
    each.method: each for each in (DPO, KTO, ORPO)
}
