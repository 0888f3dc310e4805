"""Which runs shard their weights: by request, method, number of processes and prediction."""

from dataclasses import replace

import pytest

from finetune_trainer.contract import sharding
from finetune_trainer.contract.methods import METHODS, MethodInfo, MethodType
from finetune_trainer.contract.sharding import Sharding, is_sharded, resolve_sharding


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[MethodType, MethodInfo]:
    """The methods, with LoRA as one that can be sharded and DPO as one that cannot."""
    made = {name: replace(info, shardable=name in ("LoRA", "Full")) for name, info in METHODS.items()}
    monkeypatch.setattr(sharding, "METHODS", made)
    return made


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("requested", "method", "replica_fits", "shards"),
    [
        ("Auto", "Full", True, True),
        ("Auto", "LoRA", True, False),
        ("Auto", "LoRA", False, True),
        ("Auto", "DPO", False, False),
        ("Replicated", "Full", False, False),
        ("Replicated", "LoRA", False, False),
        ("Sharded", "Full", True, True),
        ("Sharded", "LoRA", True, True),
    ],
)
def test_weights_are_sharded_as_requested_or_where_a_replica_does_not_fit(
    requested: Sharding, method: MethodType, *, replica_fits: bool, shards: bool
) -> None:
    resolved = resolve_sharding(requested, method, 2, replica_fits=replica_fits)

    assert is_sharded(method, resolved, 2) is shards
    assert resolve_sharding(requested, method, 1, replica_fits=replica_fits) is None
    assert not is_sharded(method, resolved, 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_of_a_method_is_not_recorded(method: MethodType) -> None:
    """Ledgers of earlier releases do not have the field."""
    assert resolve_sharding("Auto", method, 2) is None
    assert is_sharded(method, None, 2) is not METHODS[method].trains_adapter
