"""What a stage gets beside its config."""

from dataclasses import dataclass

from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.runtime.reporter import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.store import Store


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage; `stop` is set by SIGTERM and SIGINT."""

    store: Store
    reporter: Reporter
    stop: Stop
    group: Group = ALONE
    """The processes that do it together."""
