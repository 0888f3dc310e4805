# SPDX-License-Identifier: Apache-2.0
"""Files of tensors are those of safetensors, and are read by ranges of rows."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from finetune_trainer.train.parallel import tensor_files
from finetune_trainer.train.parallel.tensor_files import Rows, TensorFiles, write_tensors
from finetune_trainer.train.state_folders import write_files

TENSORS = {
    "b.weight": torch.arange(35, dtype=torch.float32).reshape(7, 5),
    "a.weight": torch.arange(12, dtype=torch.bfloat16).reshape(3, 2, 2),
    "step": torch.tensor(3.0),
    "ids": torch.arange(4),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than a tensor, and not a multiple of a row."""
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 24)


def write(folder: Path, name: str, rows: dict[str, Rows], *, is_shard: bool) -> None:
    write_files(folder, {name: lambda file: write_tensors(file, rows, is_shard=is_shard)})


def shards(folder: Path, sizes: list[int]) -> None:
    """Files of processes that have `sizes` rows of the tensors; those without dimensions are in the first."""
    start = 0
    for rank, size in enumerate(sizes):
        rows = {
            n: Rows(t[start : start + size], start) for n, t in TENSORS.items() if t.ndim if len(t) > start
        }
        if rank == 0:
            rows["step"] = Rows(TENSORS["step"])
        write(folder, f"shard-{rank}.safetensors", rows, is_shard=True)
        start += size


def empty() -> dict[str, Tensor]:
    return {name: torch.empty_like(tensor) for name, tensor in TENSORS.items()}


def test_a_whole_file_has_the_bytes_that_safetensors_writes(tmp_path: Path) -> None:
    write(tmp_path, "ours", {name: Rows(tensor) for name, tensor in TENSORS.items()}, is_shard=False)
    save_file(TENSORS, tmp_path / "theirs", metadata={"format": "pt"})

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_rows_are_read_from_the_files_that_have_them(tmp_path: Path) -> None:
    shards(tmp_path, [2, 3, 2])
    files = TensorFiles.below(tmp_path)

    for name, tensor in TENSORS.items():
        assert files.shape(name) == tuple(tensor.shape)
        for start in range(len(tensor) if tensor.ndim else 1):
            target = torch.empty_like(tensor[start:] if tensor.ndim else tensor)
            files.read(name, Rows(target, start))
            assert torch.equal(target, tensor[start:] if tensor.ndim else tensor)


def test_rows_become_the_dtype_of_the_target(tmp_path: Path) -> None:
    shards(tmp_path, [4, 3])
    target = torch.empty(3, 2, 2, dtype=torch.float32)

    TensorFiles.below(tmp_path).read("a.weight", Rows(target))

    assert torch.equal(target, TENSORS["a.weight"].float())


def test_missing_rows_and_other_shapes_are_errors(tmp_path: Path) -> None:
    shards(tmp_path, [2, 3, 2])
    (tmp_path / "shard-1.safetensors").unlink()
    files = TensorFiles.below(tmp_path)

    with pytest.raises(ValueError, match=r"b\.weight has no rows 2 to 7"):
        files.read("b.weight", Rows(torch.empty(7, 5)))
    with pytest.raises(ValueError, match="does not fit the model"):
        files.read("b.weight", Rows(torch.empty(7, 6)))


def test_pytorchs_distributed_checkpoint_reads_the_files_of_several_processes(tmp_path: Path) -> None:
    shards(tmp_path, [2, 3, 2])
    loaded = empty()

    with pytest.warns(UserWarning, match="single process"):
        load(loaded, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)

    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "shard-1.safetensors", framework="pt") as file:
        assert file.get_slice("b.weight").get_shape() == [3, 5]
