# SPDX-License-Identifier: Apache-2.0
"""kstatus and Argo CD judge every version of objects that a real API server stored: none is Current early."""

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from tests.baserelease import BaseRelease
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_all_reconciled, until_condition
from tests.integration.judges import STATES, argo_health, changes, kstatus, state
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.waiting import eventually
from tools.fakepods import succeeded

KINDS = ("FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "InferenceDeployment", "Evaluation")
FINISHED = ["InProgress", "Current"]


class History:
    """What was stored of the objects of a namespace since the start of a test."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._since = {
            kind: eventually(f"{kind} can be listed", partial(api.resource_version, kind, namespace))
            for kind in KINDS
        }

    def of(self, kind: str) -> dict[str, list[str]]:
        """By name, the changes of the status in kstatus. Argo CD must agree about each version."""
        versions = self._api.versions(kind, self._namespace, self._since[kind])
        verdicts: dict[str, list[str]] = defaultdict(list)
        for version, verdict, (health, _) in zip(
            versions, kstatus(versions), argo_health(versions), strict=True
        ):
            if verdict != "Terminating":
                agreed = {pair for pair in STATES.values() if pair[0] == verdict}
                assert (verdict, health) in agreed, version
                assert verdict != "Current" or state(version) not in {"Reconciling", "Stalled"}, version
            verdicts[version["metadata"]["name"]].append(verdict)
        return {name: changes(each) for name, each in verdicts.items()}


class Failing:
    """Results of stages, with one stage that fails."""

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def __call__(self, config: StageConfig) -> StageResult:
        result = succeeded(config)
        if result.stage != self._stage:
            return result
        failed: dict[str, Any] = {"outcome": "Failed", "reason": "StageFailed", "message": "no weights"}
        return result.model_copy(update={**failed, self._stage: None})


@pytest.fixture
def history(api: Api, namespace: str) -> History:
    return History(api, namespace)


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, history: History) -> Team:
    team = Team(api, namespace, operators.start().wait_active())
    api.create(manifests.dataset(namespace))
    return team


def until_ready(team: Team, kind: str, name: str) -> Object:
    return until_condition(team.api, (team.namespace, kind, name), "Ready", team.operator)


def suspend(team: Team, *, value: bool) -> None:
    team.api.patch("FineTuneJob", team.namespace, "routing", {"spec": {"suspend": value}})


def test_a_run_is_current_when_it_has_ended_and_its_records_once_they_are_complete(
    team: Team, history: History
) -> None:
    team.api.create(manifests.finetunejob(team.namespace))
    done = until_ready(team, "FineTuneJob", "routing")
    (checkpoint,) = (each["name"] for each in done["status"]["checkpoints"])
    team.api.create(manifests.dataset(team.namespace, "questions"))
    team.api.create(manifests.evaluation(team.namespace, "exam", checkpoint))
    until_ready(team, "Evaluation", "exam")

    assert history.of("FineTuneJob") == {"routing": FINISHED}
    assert history.of("Evaluation") == {"exam": FINISHED}
    assert history.of("Dataset") == {"tickets": FINISHED, "questions": FINISHED}
    for kind in ("Checkpoint", "DatasetVersion"):
        assert set(map(tuple, history.of(kind).values())) == {tuple(FINISHED)}


def test_a_run_that_is_suspended_is_current_until_it_continues(
    team: Team, history: History, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    team.api.create(manifests.finetunejob(team.namespace))
    eventually("the run trains", lambda: "train" in kubelet.started, 60, lambda: team.operator.log)
    suspend(team, value=True)
    team.until_reason("FineTuneJob", "routing", "Suspended", "Suspended")
    kubelet.held.clear()
    suspend(team, value=False)
    until_ready(team, "FineTuneJob", "routing")

    assert history.of("FineTuneJob") == {"routing": [*FINISHED, *FINISHED]}


def test_a_run_that_is_deleted_is_terminating_until_its_children_are_gone(
    team: Team, history: History, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    team.api.create(manifests.finetunejob(team.namespace))
    eventually("the run trains", lambda: "train" in kubelet.started, 60, lambda: team.operator.log)
    team.api.delete("FineTuneJob", team.namespace, "routing", "Foreground")
    eventually("it is gone", lambda: team.api.get("FineTuneJob", team.namespace, "routing") is None)

    assert history.of("FineTuneJob") == {"routing": ["InProgress", "Terminating"]}


def test_an_endpoint_is_in_progress_while_it_changes_what_it_serves(team: Team, history: History) -> None:
    for name in ("first", "second"):
        team.record(name)
        team.serve({"name": "routing", "pin": {"checkpoint": name}})
        team.until_served(routing=name)

    assert history.of("InferenceDeployment") == {"support": [*FINISHED, *FINISHED]}


@pytest.fixture
def failing_kubelet(api: Api, namespace: str) -> Iterator[FakeKubelet]:
    manifests.prepare_namespace(api, namespace)
    running = FakeKubelet(api, namespace, Failing("train"))
    yield running
    running.close()


@pytest.mark.usefixtures("failing_kubelet")
def test_a_run_that_fails_is_never_current(
    api: Api, namespace: str, operators: Operators, history: History
) -> None:
    team = Team(api, namespace, operators.start().wait_active())
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    team.until_reason("FineTuneJob", "routing", "Stalled", "StageFailed")

    assert history.of("FineTuneJob") == {"routing": ["InProgress", "Failed"]}


def test_an_upgrade_of_the_operator_changes_no_verdict(
    *, api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet, history: History, tmp_path: Path
) -> None:
    base = BaseRelease(tmp_path / "base")
    older = Team(api, namespace, operators.start_base(base, "operator-1").wait_active())
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, "before"))
    until_ready(older, "FineTuneJob", "before")
    kubelet.held = {"train"}
    api.create(manifests.finetunejob(namespace, "during"))
    eventually("the run trains", lambda: kubelet.started.count("train") == 2, 60, lambda: older.operator.log)
    older.operator.terminate()

    team = Team(api, namespace, operators.start("operator-2").wait_active())
    until_all_reconciled(api, namespace, team.operator)
    kubelet.held.clear()
    until_ready(team, "FineTuneJob", "during")

    assert history.of("FineTuneJob") == {"before": FINISHED, "during": FINISHED}
    assert history.of("Dataset") == {"tickets": FINISHED}
