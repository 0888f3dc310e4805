# SPDX-License-Identifier: Apache-2.0
"""Which runs shard their weights: by request, method, number of processes and prediction."""

import pytest

from finetune_trainer.contract.method import (
    TYPES,
    LoRA,
    Method,
    MethodType,
    Sharding,
    can_shard,
    is_sharded,
    resolve_sharding,
)


@pytest.mark.parametrize(
    ("requested", "method", "replica_fits", "shards"),
    [
        ("Auto", "Full", True, True),
        ("Auto", "LoRA", True, False),
        ("Auto", "LoRA", False, True),
        ("Replicated", "Full", False, False),
        ("Replicated", "LoRA", False, False),
        ("Sharded", "Full", True, True),
        ("Sharded", "LoRA", True, True),
    ],
)
def test_weights_are_sharded_as_requested_or_where_a_replica_does_not_fit(
    requested: Sharding, method: MethodType, *, replica_fits: bool, shards: bool
) -> None:
    resolved = resolve_sharding(requested, Method(type=method), 2, replica_fits=replica_fits)

    assert is_sharded(method, resolved, 2) is shards
    assert resolve_sharding(requested, Method(type=method), 1, replica_fits=replica_fits) is None
    assert not is_sharded(method, resolved, 1)


@pytest.mark.parametrize("method", TYPES)
def test_the_default_of_a_method_is_not_recorded(method: MethodType) -> None:
    assert resolve_sharding("Auto", Method(type=method), 2) is None
    assert is_sharded(method, None, 2) is not TYPES[method].trains_adapter


def test_dora_stays_replicated() -> None:
    dora = Method(type="QLoRA", lora=LoRA(dora=True))

    assert resolve_sharding("Auto", dora, 2, replica_fits=False) is None
    assert not can_shard(dora)
