# SPDX-License-Identifier: Apache-2.0
"""Cancelled runs on a real API server, also when the field is removed or the operator is killed."""

from typing import Any

import pytest

from finetune_operator.manifests.labels import RECORDED_RUN
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object, path_of
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.integration.test_devicetime import counted, lost, running_pod
from tests.waiting import eventually

ADMISSION = "/apis/admissionregistration.k8s.io/v1"


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    api.create(manifests.dataset(namespace))
    return Team(api, namespace, operators.start().wait_active())


def apply(team: Team, name: str, **spec: Any) -> None:
    """Apply the run as Flux and `kubectl apply` do: fields that the manifest no longer has are removed."""
    team.api.apply(manifests.finetunejob(team.namespace, name, **spec))


def cancel(team: Team, name: str, *, value: bool | None = True) -> None:
    team.api.patch("FineTuneJob", team.namespace, name, {"spec": {"cancel": value}})


def run_of(team: Team, name: str) -> Object:
    found = team.api.get("FineTuneJob", team.namespace, name)
    assert found is not None
    return found


def until_cancelled(team: Team, name: str) -> Object:
    team.until_reason("FineTuneJob", name, "Stalled", "Cancelled")
    found = run_of(team, name)
    assert found["metadata"]["annotations"][RECORDED_RUN].endswith(".cancelled")
    assert found["status"]["phase"] == "Cancelled"
    return found


def until_recorded(team: Team, name: str) -> None:
    """Wait until the operator has recorded that the run is cancelled."""
    eventually(
        "it is recorded",
        lambda: (
            run_of(team, name)["metadata"].get("annotations", {}).get(RECORDED_RUN, "").endswith(".cancelled")
        ),
    )


def until_observed(team: Team, name: str) -> None:
    """Wait until the operator has observed the last change of the spec."""

    def is_observed() -> bool:
        found = run_of(team, name)
        return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])

    eventually(f"{name} was observed", is_observed)


def until_event(team: Team, reason: str) -> Object:
    def found() -> Object | None:
        return next(
            (each for each in team.api.list("Event", team.namespace) if each["reason"] == reason), None
        )

    return eventually(f"an event {reason}", found, 30)


def test_a_run_can_be_cancelled_before_it_starts_while_it_is_queued_and_while_it_is_suspended(
    team: Team, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"preflight"}
    apply(team, "at-once", cancel=True)
    apply(team, "suspended", suspend=True)
    apply(team, "queued")
    until_cancelled(team, "at-once")
    team.until_reason("FineTuneJob", "suspended", "Suspended", "Suspended")
    (job,) = eventually(
        "the queued run has a Job", lambda: jobs_of_stage(team.api, team.namespace, "preflight")
    )
    # As Kueue does with a Job that it does not admit.
    team.api.patch("Job", team.namespace, job["metadata"]["name"], {"spec": {"suspend": True}})
    for name in ("suspended", "queued"):
        cancel(team, name)
    for name in ("suspended", "queued"):
        until_cancelled(team, name)
    assert jobs_of_stage(team.api, team.namespace, "preflight") == []

    # Git does not have the field.
    for name in ("at-once", "suspended", "queued"):
        apply(team, name)
        cancel(team, name, value=None)
        until_observed(team, name)
        until_cancelled(team, name)
    assert jobs_of_stage(team.api, team.namespace, "preflight") == []


def test_a_training_that_is_cancelled_is_lost_and_removing_the_field_at_once_changes_nothing(
    team: Team, namespace: str, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    apply(team, "routing")
    running_pod(team.api, namespace)
    team.until_reason("FineTuneJob", "routing", "Reconciling", "Training")
    cancel(team, "routing")
    until_recorded(team, "routing")
    cancel(team, "routing", value=None)

    run = until_cancelled(team, "routing")
    assert jobs_of_stage(team.api, namespace, "train") == []
    (train,) = (each for each in run["status"]["stages"] if each["name"] == "train")
    lost_seconds = lost(run)["Cancelled"]
    assert lost_seconds == train["deviceSeconds"] > 0
    eventually(
        "it is counted",
        lambda: counted(team.operator, "lost_device_seconds", namespace, cause="Cancelled") == lost_seconds,
    )
    stages = 'finetune_stage_seconds_count{{outcome="{}",stage="train"}}'
    assert [team.operator.metric(stages.format(each)) for each in ("cancelled", "failed")] == [1, 0]
    assert until_event(team, "Cancelled")["type"] == "Normal"


def test_a_finished_run_says_that_cancelling_has_no_effect(team: Team) -> None:
    apply(team, "routing")
    done = until_condition(team.api, (team.namespace, "FineTuneJob", "routing"), "Ready", team.operator)
    cancel(team, "routing")
    assert "has already ended" in until_event(team, "CancelIgnored")["message"]

    found = run_of(team, "routing")
    assert found["status"]["conditions"] == done["status"]["conditions"]
    assert not found["metadata"]["annotations"][RECORDED_RUN].endswith(".cancelled")


class Deletions:
    """An admission policy that refuses deletions of Jobs in a namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._job = path_of("Job", namespace)
        self._binding = f"{ADMISSION}/validatingadmissionpolicybindings"
        self._name = f"no-deletions-{namespace}"
        rule = {
            "apiGroups": ["batch"],
            "apiVersions": ["v1"],
            "resources": ["jobs"],
            "operations": ["DELETE"],
        }
        where = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        constraints = {"resourceRules": [rule], "namespaceSelector": where}
        validations = [{"expression": "false", "message": "Jobs stay"}]
        policy: Object = {"matchConstraints": constraints, "validations": validations}
        self._create(f"{ADMISSION}/validatingadmissionpolicies", policy)

    def refuse(self, job: str) -> None:
        """Begin to refuse, and wait until the deletion of this Job is refused."""
        self._create(self._binding, {"policyName": self._name, "validationActions": ["Deny"]})
        eventually("deletions are refused", lambda: self._is_refused(job))

    def allow(self, job: str) -> None:
        self._api.request("DELETE", f"{self._binding}/{self._name}").raise_for_status()
        eventually("deletions are allowed", lambda: not self._is_refused(job))

    def _create(self, collection: str, spec: Object) -> None:
        body: Object = {"metadata": {"name": self._name}, "spec": spec}
        self._api.request("POST", collection, body).raise_for_status()

    def _is_refused(self, job: str) -> bool:
        return self._api.request("DELETE", f"{self._job}/{job}?dryRun=All").is_error


def test_an_operator_that_is_killed_before_it_deletes_anything_still_cancels_the_run(
    api: Api, namespace: str, operators: Operators, team: Team, kubelet: FakeKubelet
) -> None:
    kubelet.held = {"train"}
    apply(team, "routing")
    running_pod(api, namespace)
    (job,) = (each["metadata"] for each in jobs_of_stage(api, namespace, "train"))
    deletions = Deletions(api, namespace)
    deletions.refuse(job["name"])
    cancel(team, "routing")
    until_recorded(team, "routing")
    team.operator.kill()
    cancel(team, "routing", value=None)
    assert [each["metadata"]["uid"] for each in jobs_of_stage(api, namespace, "train")] == [job["uid"]]
    deletions.allow(job["name"])

    team.operator = operators.start().wait_active()
    until_cancelled(team, "routing")
    assert jobs_of_stage(api, namespace, "train") == []
