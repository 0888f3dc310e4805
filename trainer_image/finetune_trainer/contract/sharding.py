"""Whether the processes of a run shard the weights of the model, or each has a replica."""

from typing import Literal

from finetune_trainer.contract.methods import METHODS, MethodType

Sharding = Literal["Auto", "Replicated", "Sharded"]


def is_sharded(method: MethodType, sharded: bool | None, processes: int) -> bool:
    """Whether a run with this hyperparameter `sharded` shards its weights; one process shards nothing."""
    if processes == 1:
        return False
    return METHODS[method].sharded_by_default if sharded is None else sharded


def resolve_sharding(
    requested: Sharding, method: MethodType, processes: int, *, replica_fits: bool = True
) -> bool | None:
    """The hyperparameter `sharded` of a run; None where it is the method's default.

    Args:
        requested: `compute.sharding`. Auto is the method's default.
        method: the method.
        processes: number of processes of the run.
        replica_fits: whether a replica is predicted to fit a device. If not, Auto shards what can be sharded.
    """
    info = METHODS[method]
    if requested == "Auto":
        wanted = info.sharded_by_default or (info.shardable and not replica_fits)
    else:
        wanted = requested == "Sharded"
    return None if processes == 1 or wanted == info.sharded_by_default else wanted
