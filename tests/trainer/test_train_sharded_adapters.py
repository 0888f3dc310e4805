# SPDX-License-Identifier: Apache-2.0
"""Adapters over a base model that the processes of a run shard: the weights of replicas, in less memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.train import model_setup, session
from finetune_trainer.train.model_setup import Trainable
from tests.trainer.test_train_distributed import Pods, pods
from tests.trainer.workbench import JUDGED, PAIRS, Workbench, elsewhere

SHARDED = {"sharded": True}


def report_held_bytes() -> None:
    """Report the bytes of the frozen and of the trained weights that a process holds."""

    def load(*arguments: Any) -> Trainable:
        model = model_setup.trainable_model(*arguments)
        held = {False: 0, True: 0}
        for weight in model.parameters():
            local = weight.to_local() if isinstance(weight, DTensor) else weight
            held[weight.requires_grad] += local.nbytes
        print(json.dumps({"message": f"holds {held[False]} and {held[True]} bytes"}), flush=True)
        return model

    vars(session)["trainable_model"] = load


def held_bytes(messages: list[str]) -> tuple[int, int]:
    """Bytes of frozen and of trained weights that `report_held_bytes` reported."""
    (words,) = (message.split() for message in messages if message.startswith("holds "))
    return int(words[1]), int(words[3])


def parent_of(bench: Workbench, made: Pods) -> ParentCheckpoint:
    config = made.alone().model_copy(update={"run": "parent"})
    return ParentCheckpoint(name="routing-1f1f-4", digest=bench.train(config).checkpoints[-1].digest)


@pytest.mark.parametrize(
    ("variant", "continues"),
    [
        ({"accumulation": 2, "settings": {"gradient_checkpointing": True}}, False),
        pytest.param({"settings": {"max_batch_tokens": 64}}, True, marks=pytest.mark.full),
        ({"method": "QLoRA", "accumulation": 2}, False),
        ({"method": "DPO", "rows": PAIRS[:9]}, True),
        pytest.param({"method": "KTO", "rows": JUDGED[:9]}, False, marks=pytest.mark.full),
        pytest.param({"method": "ORPO", "rows": PAIRS[:9]}, False, marks=pytest.mark.full),
    ],
    ids=[
        "LoRA with checkpointing",
        "LoRA continued with a token budget",
        "QLoRA",
        "DPO continued",
        "KTO",
        "ORPO",
    ],
)
def test_the_adapter_equals_that_over_replicas(
    tmp_path: Path, variant: dict[str, Any], *, continues: bool
) -> None:
    adapters, held = [], []
    for name, how in (("replicas", {}), ("shards", SHARDED)):
        bench = elsewhere(Workbench(tmp_path), name)
        made = variant | {"settings": variant.get("settings", {}) | how}
        with pods(bench.root, **made) as two:
            config = two.config
            if continues:
                config = config.model_copy(update={"parent": parent_of(bench, two)})
            started = [two.start(rank, report_held_bytes, config) for rank in range(2)]
            ended = [each.finish() for each in started]
            assert [each.code for each in ended] == [ExitCode.OK] * 2, ended[1].logs
            adapters.append(two.result)
        held.append([held_bytes(each.messages) for each in ended])

    assert adapters[1] == adapters[0]
    (frozen, trained), _ = held[0]
    assert [of_rank[1] for of_rank in held[1]] == [trained] * 2
    assert all(of_rank[0] < 0.6 * frozen for of_rank in held[1])
    assert sum(of_rank[0] for of_rank in held[1]) == frozen
