# SPDX-License-Identifier: Apache-2.0
"""A control plane for all chains, the outcome of an undisturbed one, and the disturbed ones in parallel."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import pytest

from tests.faults.laboratory import Laboratory, Outcome, Verdicts
from tests.faults.trials import Trial
from tests.integration.api import Api
from tests.integration.conftest import api, control_plane, kubernetes
from tools.cluster import ControlPlane

__all__ = ["api", "control_plane", "kubernetes"]

MAX_CONCURRENT_CHAINS: Final = 16
"""More than the number of cores, because a chain waits most of the time."""


@pytest.fixture(scope="session")
def laboratory(control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(control_plane, api, tmp_path_factory.mktemp("chains"))


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(MAX_CONCURRENT_CHAINS) as started:
        yield started
        started.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def undisturbed(laboratory: Laboratory, pool: ThreadPoolExecutor) -> Future[Outcome]:
    return pool.submit(laboratory.run, Trial())


@pytest.fixture(scope="session")
def verdicts(
    request: pytest.FixtureRequest,
    laboratory: Laboratory,
    pool: ThreadPoolExecutor,
    undisturbed: Future[Outcome],
) -> Verdicts:
    """Run the trials of all selected tests, MAX_CONCURRENT_CHAINS at a time, in the order of the tests."""
    parameters = (
        item.callspec.params["trial"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and {"trial", "verdicts"} <= set(item.fixturenames)
    )
    selected = [trial for trial in parameters if isinstance(trial, Trial)]
    return {trial: pool.submit(laboratory.compare, trial, undisturbed) for trial in selected}
