# SPDX-License-Identifier: Apache-2.0
"""The losses of the objectives that train on preference data."""

from collections.abc import Mapping
from typing import Any, Final

from finetune_trainer.contract.method import Objective
from finetune_trainer.train.preference.dpo import DPO
from finetune_trainer.train.preference.kto import KTO
from finetune_trainer.train.preference.losses import PreferenceLoss
from finetune_trainer.train.preference.orpo import ORPO

LOSSES: Final[Mapping[Objective, type[PreferenceLoss[Any]]]] = {
    each.objective: each for each in (DPO, KTO, ORPO)
}
