# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: models are made once, and one server answers all tests of the API."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tests.trainer.serve.models import Oracle, make_endless, make_gemma, make_llama


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all models."""
    folder = tmp_path_factory.mktemp("models")
    make_llama(folder)
    make_gemma(folder)
    make_endless(folder)
    return folder


@pytest.fixture(scope="session")
def oracle(root: Path) -> Oracle:
    """The correct answers of the Llama."""
    return Oracle(root, "llama")


@pytest.fixture(scope="session")
def endpoint(root: Path) -> Iterator[Endpoint]:
    """A server of the Llama and its adapters, with four slots."""
    with served_here(serve_config(root, max_batch_size=4)) as served:
        yield served
