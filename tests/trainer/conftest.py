# SPDX-License-Identifier: Apache-2.0
"""Settings for all tests of the trainer."""

import gc
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.runtime.logs import SCRUBBER, Scrubber

if TYPE_CHECKING:
    from tests.trainer.workbench import Undisturbed

# As in the image. PyTorch reads it while loading. Spinning threads starve a machine with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> None:
    """Freeze imported objects: collecting garbage among them takes longer than the steps of a training."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter collect all objects at its exit."""
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """See `onethread`; nothing to do as long as no test has imported torch, which many do not need."""
    if "torch" in sys.modules:
        from tests.trainer.onethread import use_one_thread

        use_one_thread()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> "Undisturbed":
    # This imports torch, which many tests do not need.
    from tests.trainer.workbench import Undisturbed

    return Undisturbed(lambda: tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """Reset the scrubber: a process has the credentials of one stage, but tests share a process."""
    yield
    vars(SCRUBBER).update(vars(Scrubber()))


@pytest.fixture(autouse=True)
def nothing_replaced() -> Iterator[None]:
    """Check that a test leaves the functions of torch that transformers replaces while it builds a model.

    Two models that are built in two threads of one process can leave them replaced. Later models would then
    have parameters and buffers with arbitrary content.
    """
    yield
    if "transformers.modeling_utils" in sys.modules:
        import torch
        from transformers import PreTrainedModel
        from transformers.initialization import TORCH_INIT_FUNCTIONS

        for name, original in TORCH_INIT_FUNCTIONS.items():
            assert getattr(torch.nn.init, name) is original
        assert PreTrainedModel.init_weights.__qualname__ == "PreTrainedModel.init_weights"
        assert torch.get_default_dtype() is torch.float32
