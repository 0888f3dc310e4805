"""Settings of all tests of the trainer."""

import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from finetune_trainer.runtime.scrubbing import SCRUBBER, Scrubber

if TYPE_CHECKING:
    from tests.trainer.workbench import Undisturbed

# As in the image; read when PyTorch is loaded. Spinning threads starve a machine that runs other things too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect() -> None:
    """Training collects garbage when it ends; a look at all that is imported takes longer than its steps."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter take apart at its end what it has."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> "Undisturbed":
    # It imports torch, which many tests here do without.
    from tests.trainer.workbench import Undisturbed

    return Undisturbed(lambda: tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """A process holds the credentials of one stage; the tests of many stages are one process."""
    yield
    vars(SCRUBBER).update(vars(Scrubber()))
