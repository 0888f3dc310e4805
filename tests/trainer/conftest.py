"""Settings for all tests of the trainer."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.runtime.scrubbing import SCRUBBER, Scrubber

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
