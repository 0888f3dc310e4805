# SPDX-License-Identifier: Apache-2.0
"""Whether the processes of a run shard the weights of the model, or each has a replica."""

from typing import Literal

from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import TYPES, MethodType

Sharding = Literal["Auto", "Replicated", "Sharded"]


def can_shard(method: Method) -> bool:
    """Whether processes can shard the weights of the method with these settings.

    They cannot with DoRA, because PEFT computes its magnitudes from whole weights.
    """
    return not (TYPES[method.type].trains_adapter and method.lora.dora)


def is_sharded(type_: MethodType, sharded: bool | None, processes: int) -> bool:
    """Whether a run with this hyperparameter `sharded` shards its weights; one process shards nothing."""
    if processes == 1:
        return False
    return TYPES[type_].sharded_by_default if sharded is None else sharded


def resolve_sharding(
    requested: Sharding, method: Method, processes: int, *, replica_fits: bool = True
) -> bool | None:
    """The hyperparameter `sharded` of a run; None where it is the default of the method's type.

    Args:
        requested: `compute.sharding`. Auto is the default of the method's type.
        method: the method, with the settings of the adapter that the run continues.
        processes: number of processes of the run.
        replica_fits: whether a replica is predicted to fit a device. If not, Auto shards what can be sharded.
    """
    info = TYPES[method.type]
    if requested == "Auto":
        wanted = info.sharded_by_default or (can_shard(method) and not replica_fits)
    else:
        wanted = requested == "Sharded"
    return None if processes == 1 or wanted == info.sharded_by_default else wanted
