# SPDX-License-Identifier: Apache-2.0
"""What a device gets: threads for the processors of a pod, and the dtype of weights that are not trained."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from finetune_trainer.model import device, loading
from finetune_trainer.model.device import choose_device, frozen_dtype, release_memory
from finetune_trainer.pod_limits import available_processors

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "processors"),
    [
        ("max 100000", ALLOWED),
        ("50000 100000", 1),
        ("100000 100000", 1),
        ("150000 100000", min(2, ALLOWED)),
        ("6400000 100000", min(64, ALLOWED)),
    ],
)
def test_a_pods_cpu_limit_is_rounded_up_to_whole_processors(
    tmp_path: Path, limit: str, processors: int
) -> None:
    path = tmp_path / "cpu.max"
    path.write_text(f"{limit}\n")

    assert available_processors(path) == processors


def test_without_a_limit_every_processor_is_used(tmp_path: Path) -> None:
    assert available_processors(tmp_path / "absent") == ALLOWED


@pytest.mark.parametrize("has_gpu", [True, False])
def test_each_process_of_a_pod_has_its_share_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(device, "available_processors", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)

    chosen = choose_device(1, 2)

    assert chosen == torch.device("cuda:1" if has_gpu else "cpu")
    assert threads == [4]


def test_weights_that_are_not_trained_are_bfloat16_on_a_gpu_whatever_is_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[object] = []

    def load(*_: object, dtype: object, **__: object) -> str:
        loaded.append(dtype)
        return "model"

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    for dtype, place in ((None, "cuda"), (torch.float32, "cuda"), (None, "cpu")):
        loading.load_base(Path("model"), dtype, torch.device(place))
    assert loaded[:2] == [torch.bfloat16, torch.float32]
    assert loaded[2] == (frozen_dtype(torch.device("cpu")) or "auto")


def test_the_peak_of_a_failed_attempt_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: called.append(name))
    release_memory()
    assert called == ["empty_cache", "reset_peak_memory_stats"]
