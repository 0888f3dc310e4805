# SPDX-License-Identifier: Apache-2.0
"""Weights that are sharded while they are loaded, and gathered tensor by tensor while they are written."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from typing_extensions import override

from finetune_trainer.model.loading import load_base
from finetune_trainer.preflight.estimate.fake_step import START, LiveBytes
from finetune_trainer.train.parallel.shards import local_rows, sharding_config
from finetune_trainer.train.states.weights import write_model
from tests.forkserver import Forked
from tests.trainer.architectures import ARCHITECTURES, tiny_model
from tools.cluster.layout import free_port

CPU: Final = torch.device("cpu")
PROCESSES: Final = 2
TIMEOUT_SECONDS: Final = 120
NAMED: Final = ("llama", "mixtral", "gemma3_text", "falcon_h1", "gpt2")
"""Plain; converted experts; tied weights; a buffer that is in no file; layers that only its class names."""
FILE_SIZE: Final = "30KB"
"""So that a model has several files."""


class LocalBytes(LiveBytes):  # type: ignore[no-untyped-call]
    """Counts tensors in the memory of this process, but not those that a file is mapped to."""

    @override
    def add(self, tensor: Tensor) -> bool:
        return (
            not isinstance(tensor, DTensor)
            and not tensor.is_meta
            and tensor.untyped_storage().filename is None
            and super().add(tensor)
        )

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented  # count what happens inside
        return super().__torch_dispatch__(func, types, args, kwargs)

    @property
    def peak(self) -> int:
        return self.peaks[START]


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of this process's rows; tied tensors count once."""
    distinct = {id(each): local_rows(each).data for each in tensors.values()}
    return sum(each.numel() * each.element_size() for each in distinct.values())


def distinct(model: PreTrainedModel) -> int:
    """Number of distinct tensors; tied tensors count once."""
    return len({id(each) for each in tensors_of(model).values()})


def measure(rank: int, folder: Path, written: Path) -> dict[str, Any]:
    """Load a model in this process and its peer, compare it with that of one process, and write it."""
    one = load_base(folder, torch.float32, CPU)
    whole = tensors_of(one)
    with LocalBytes() as loading:
        model = load_base(folder, torch.float32, CPU, sharding=sharding_config(folder, PROCESSES, CPU))
    mine = tensors_of(model)
    full = {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in mine.items()}
    share = size_of(mine)
    del mine
    differ = [name for name in whole if not torch.equal(whole[name], full[name])]
    with LocalBytes() as writing:
        write_model(model, torch.bfloat16, written if rank == 0 else None)
    return {
        "differ": differ,
        "distinct": [distinct(one), distinct(model)],
        "whole": size_of(whole),
        "share": share,
        "loading": loading.peak,
        "writing": writing.peak,
    }


def run(rank: int, port: int, names: Sequence[str], root: Path) -> None:
    """Write the measurements of this process into a file of its own."""
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # only operations of this thread are counted
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    measured = [measure(rank, root / name / "base", root / name / "written") for name in names]
    (root / f"{rank}.json").write_text(json.dumps(measured))
    dist.destroy_process_group()


def shard(names: Sequence[str], root: Path) -> None:
    """Load and write tiny models of these architectures with two processes, and check both."""
    for name in names:
        halved(name).save_pretrained(root / name / "base")
        (root / name / "written").mkdir()
    port = free_port()
    started = [Forked(run, rank, port, names, root) for rank in range(PROCESSES)]
    try:
        assert [each.wait(TIMEOUT_SECONDS) for each in started] == [0] * PROCESSES
    finally:
        for each in started:
            each.kill()
    for rank in range(PROCESSES):
        for name, measured in zip(names, json.loads((root / f"{rank}.json").read_text()), strict=True):
            assert measured["differ"] == [], name
            assert measured["distinct"][0] == measured["distinct"][1], name
            assert measured["loading"] <= 1.3 * measured["share"], name
            if name in NAMED:  # these have no layer that is most of the model
                assert measured["writing"] < 0.9 * measured["whole"], name
    for name in names:
        alone = root / name / "alone"
        alone.mkdir()
        write_model(load_base(root / name / "base", torch.float32, CPU), torch.bfloat16, alone)
        assert contents(root / name / "written") == contents(alone), name


def halved(name: str) -> PreTrainedModel:
    """The tiny model of an architecture in bfloat16."""
    model = tiny_model(name)
    model.to(torch.bfloat16)  # type: ignore[arg-type] # its stub knows one overload
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_each_process_loads_its_rows_only_and_writes_the_files_of_one_tensor_by_tensor(
    tmp_path: Path,
) -> None:
    shard(NAMED, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - set(NAMED)))
def test_every_architecture_is_sharded_exactly(tmp_path: Path, name: str) -> None:
    shard([name], tmp_path)


def test_files_and_index_are_those_of_save_pretrained(tmp_path: Path) -> None:
    model = tiny_model("llama")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    write_model(model, None, ours, max_file_size=FILE_SIZE)
    model.save_pretrained(theirs, max_shard_size=FILE_SIZE)

    expected = {name: each for name, each in contents(theirs).items() if not name.endswith("config.json")}
    assert len(expected) > 2
    assert contents(ours) == expected
