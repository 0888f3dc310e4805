# SPDX-License-Identifier: Apache-2.0
"""The dtype of weights in inference."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.model import device
from finetune_trainer.model.device import multiplies_bfloat16
from finetune_trainer.model.loading import load_base
from tools.models import tiny

CPU = torch.device("cpu")


@pytest.fixture
def halved(tmp_path: Path) -> Path:
    """A model that is stored in bfloat16."""
    load_base(tiny(), torch.bfloat16, CPU).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("multiplies", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_weights_are_widened_only_where_the_cpu_does_not_multiply_bfloat16(
    halved: Path, monkeypatch: pytest.MonkeyPatch, multiplies: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda _: multiplies)
    assert load_base(halved, None, CPU).dtype == dtype


def test_a_precision_that_is_asked_for_is_taken(halved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda _: False)
    assert load_base(halved, torch.bfloat16, CPU).dtype == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_multiplies_it_and_of_a_cpu_pytorch_tells(monkeypatch: Any, supported: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert multiplies_bfloat16(CPU) is supported
    assert multiplies_bfloat16(torch.device("cuda"))
