# SPDX-License-Identifier: Apache-2.0
"""The runtime context of a stage, in addition to its config."""

from dataclasses import dataclass

from finetune_trainer.distributed.process_group import ALONE, Group
from finetune_trainer.runtime.reporter import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.store import Store


@dataclass(frozen=True)
class StageContext:
    """Store, reporter, stop flag and process group of one stage; SIGTERM and SIGINT set `stop`."""

    store: Store
    reporter: Reporter
    stop: Stop
    group: Group = ALONE
    """The processes that run the stage together."""
