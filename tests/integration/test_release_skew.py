# SPDX-License-Identifier: Apache-2.0
"""Upgrades and rollbacks of the operator during a run, between this release and the base release."""

from pathlib import Path

import pytest

from tests.baserelease import BaseRelease
from tests.fakekubelet import FakeKubelet
from tests.faults.results import Results
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_all_reconciled, until_condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually

START_SECONDS = 120
"""Long, because many processes start one after another on a busy machine."""
STAGES = ("prepare", "preflight", "train", "evaluate")


@pytest.fixture
def outcome() -> Results:
    return Results(silent="nobody")


class Releases:
    """Runs one operator at a time, of this release or of the base release."""

    def __init__(self, operators: Operators, base: BaseRelease, api: Api, namespace: str) -> None:
        self._operators = operators
        self._base = base
        self._api = api
        self._namespace = namespace
        self._started = 0
        self.now: Operator | None = None

    def change(self, *, older: bool) -> Operator:
        """Replace the running operator, and wait until the new one has reconciled every object."""
        if self.now is not None:
            self.now.terminate()
        self._started += 1
        name = f"operator-{self._started}"
        self.now = self._operators.start_base(self._base, name) if older else self._operators.start(name)
        eventually("the operator is active", self.now.is_active, START_SECONDS, self.log)
        until_all_reconciled(self._api, self._namespace, self.now)
        return self.now

    def log(self) -> str:
        return "" if self.now is None else self.now.log[-4000:]


def pod_uids(api: Api, namespace: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in api.list("Pod", namespace)}


def settings(api: Api, namespace: str, run: str) -> Object:
    """The run's resolved settings."""
    job = api.get("FineTuneJob", namespace, run)
    assert job is not None
    resolved: Object = job["status"]["resolved"]
    return resolved


@pytest.mark.parametrize("began_older", [True, False], ids=["begun before", "begun after"])
def test_changes_of_the_release_keep_pods_and_settings_and_train_nothing_twice(
    *,
    began_older: bool,
    api: Api,
    namespace: str,
    operators: Operators,
    kubelet: FakeKubelet,
    tmp_path: Path,
) -> None:
    releases = Releases(operators, BaseRelease(tmp_path / "base"), api, namespace)
    kubelet.held = {"train", "evaluate"}
    operator = releases.change(older=began_older)
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    eventually("the train pod runs", lambda: "train" in kubelet.started, 60, lambda: operator.log)
    eventually("it is seen", lambda: bool(jobs_of_stage(api, namespace, "train")))
    pods, resolved = pod_uids(api, namespace), settings(api, namespace, "routing")

    for older in (not began_older, began_older, not began_older):
        releases.change(older=older)
        assert pod_uids(api, namespace) == pods
        assert settings(api, namespace, "routing") == resolved

    # The release that did not create the train Job reads its result and evaluates the model.
    kubelet.held.discard("train")
    eventually(
        "the model is judged",
        lambda: "evaluate" in kubelet.started,
        90,
        lambda: str(releases.now and releases.now.log),
    )
    last = releases.change(older=began_older)
    kubelet.held.clear()
    done = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", last)

    assert done["status"]["evaluation"]["verdict"] == "Passed"
    assert {key: done["status"]["resolved"][key] for key in resolved} == resolved
    assert [stage for stage in kubelet.started if stage in STAGES] == list(STAGES)
    releases.change(older=False)
    assert [stage for stage in kubelet.started if stage in STAGES] == list(STAGES)
