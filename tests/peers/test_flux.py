# SPDX-License-Identifier: Apache-2.0
"""Flux reconciles the repository of docs/gitops.md next to the real operator.

It has our chart, profiles, Datasets, runs and endpoints.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pytest

from finetune_operator.api.meta import GROUP
from tests.integration.api import Object, path_of
from tests.integration.chain import until_settled
from tests.integration.manifests import condition, is_true
from tests.peers.fluxcontrollers import NAMESPACE
from tests.peers.fluxscene import APPROVAL, RUN, RUNS, TEAM, Scene, apply, scene
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

TEAMS: Final = ("support-datasets", "support-runs", "support-endpoints")
KUSTOMIZATIONS: Final = ("finetune-crds", "finetune-operator", "finetune-profiles", *TEAMS)
KINDS: Final = ("FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "InferenceDeployment")
PASSES: Final = 4
BY_PERSON: Final = 3
"""Replicas that a person sets with kubectl."""
PASSING: Final = {"DependencyNotReady", "HealthCheckCanceled"}
"""Reasons of Ready=False while a dependency is reconciled, and after a request that ends a health check."""
SOAK_SECONDS: Final = 1800
SUSPENDED: Final = '{"spec":{"suspend":true}}'
DISABLED: Final = "kustomize.toolkit.fluxcd.io/reconcile"


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The first run trains, and its pods do not end."""
    with scene(tmp_path_factory.mktemp("flux")) as made:
        made.kubelet.held = {"train"}
        apply(made.api, "support.yaml")
        made.until_training(1)
        yield made


def until_ready(team: Scene, *names: str) -> None:
    for name in names:
        eventually(f"{name} is Ready", partial(is_ready, team, name), 90, partial(team.flux.get, name))


def is_ready(team: Scene, name: str) -> bool:
    return bool(team.flux.ready(name).get("status") == "True")


def test_a_kustomization_is_ready_after_its_run_has_ended_and_not_before(team: Scene) -> None:
    since = team.api.resource_version("FineTuneJob", TEAM)
    assert since is not None
    until_ready(team, "support-datasets")
    assert [is_ready(team, name) for name in ("support-runs", "support-endpoints")] == [False, False]

    team.kubelet.held.clear()
    until_ready(team, *KUSTOMIZATIONS)
    run = first_ready(team, "FineTuneJob", TEAM, RUN, since)
    endpoint = first_ready(team, "InferenceDeployment", TEAM, "ticket-routing", since)
    assert run < first_ready(team, "Kustomization", NAMESPACE, "support-runs", since)
    assert endpoint < first_ready(team, "Kustomization", NAMESPACE, "support-endpoints", since)


def first_ready(team: Scene, kind: str, namespace: str, name: str, since: str) -> int:
    """Resource version of the first version of the object that is Ready."""
    versions = team.api.versions(kind, namespace, since)
    ready = (each for each in versions if each["metadata"]["name"] == name and is_true(each, "Ready"))
    return int(next(ready)["metadata"]["resourceVersion"])


def test_the_next_commit_is_applied_while_a_run_trains(team: Scene) -> None:
    team.kubelet.held = {"train"}
    team.write_run("ticket-routing-2")
    team.push("Train again")
    team.until_training(2)
    team.write_run("ticket-routing-3", suspend=True)
    commit = team.push("Prepare a run that is started later")
    team.until("FineTuneJob", "ticket-routing-3", "Suspended")
    assert is_true(team.run("ticket-routing-2"), "Reconciling")
    assert not is_ready(team, "support-runs")

    team.kubelet.held.clear()
    team.flux.until_applied("support-runs", commit)
    assert is_true(team.run("ticket-routing-3"), "Suspended")
    team.write_run("ticket-routing-3", suspend=False)
    team.flux.until_applied("support-runs", team.push("Start it"))
    assert is_true(team.run("ticket-routing-3"), "Ready")


def test_a_kustomization_has_failed_when_a_run_has_failed(team: Scene) -> None:
    team.outcomes.fails = True
    team.write_run("ticket-routing-4")
    team.push("Train on rows that do not fit")
    assert "ticket-routing-4" in team.flux.until_failed("support-runs")
    assert is_true(team.endpoint(), "Ready")

    team.outcomes.fails = False
    team.repository.remove(f"{RUNS}/ticket-routing-4.yaml")
    team.flux.until_applied("support-runs", team.push("Give up"))
    team.until_absent("FineTuneJob", "ticket-routing-4")


def test_what_a_person_changes_is_put_back_unless_reconciliation_is_disabled(team: Scene) -> None:
    edit(team, "finetunejob", RUN, SUSPENDED)
    edit(team, "inferencedeployment", "ticket-routing", f'{{"spec":{{"replicas":{BY_PERSON}}}}}')
    team.flux.reconcile("support-runs", "support-endpoints")
    assert spec_of(team.run())["suspend"] is False
    assert spec_of(team.endpoint())["replicas"] == 1

    annotate(team, f"{DISABLED}=disabled")
    edit(team, "finetunejob", RUN, SUSPENDED)
    team.flux.reconcile("support-runs")
    assert spec_of(team.run())["suspend"] is True
    annotate(team, f"{DISABLED}-")
    team.flux.reconcile("support-runs")
    assert spec_of(team.run())["suspend"] is False
    until_ready(team, *KUSTOMIZATIONS)


def test_replicas_of_the_scale_subresource_stay_if_the_file_has_none(team: Scene) -> None:
    scale = f"{path_of('InferenceDeployment', TEAM, 'ticket-routing')}/scale?fieldManager=autoscaler"
    merge = "application/merge-patch+json"
    team.api.request("PATCH", scale, {"spec": {"replicas": 2}}, Content_Type=merge).raise_for_status()
    team.flux.reconcile("support-endpoints")
    assert spec_of(team.endpoint())["replicas"] == 2
    target = ("inferencedeployment/ticket-routing", f"--namespace={TEAM}")
    team.plane.kubectl.run("scale", *target, f"--replicas={BY_PERSON}")
    team.flux.reconcile("support-endpoints")
    assert spec_of(team.endpoint())["replicas"] == BY_PERSON
    team.plane.kubectl.run("scale", *target, "--replicas=1")
    until_ready(team, "support-endpoints")


def edit(team: Scene, kind: str, name: str, patch: str) -> None:
    kubectl = team.plane.kubectl
    kubectl.run("patch", kind, name, f"--namespace={TEAM}", "--type=merge", f"--patch={patch}")


def annotate(team: Scene, annotation: str) -> None:
    team.plane.kubectl.run("annotate", "finetunejob", RUN, f"--namespace={TEAM}", annotation)


def spec_of(manifest: Object | None) -> Object:
    assert manifest is not None
    spec: Object = manifest["spec"]
    return spec


def test_an_approval_in_git_promotes_a_checkpoint_and_is_not_pruned(team: Scene) -> None:
    team.write_run("ticket-routing-5", promotion={"mode": "Manual"})
    team.flux.until_applied("support-runs", team.push("Train for a person"))
    run = team.run("ticket-routing-5")
    assert condition(run, "Ready")["reason"] == "AwaitingApproval"
    (checkpoint,) = (each["name"] for each in (run or {})["status"]["checkpoints"])
    team.write_approval(checkpoint)
    team.flux.until_applied("support-endpoints", team.push("Approve"))
    eventually(
        "the endpoint serves it",
        lambda: checkpoint in str((team.endpoint() or {})["status"]["models"]),
        60,
        team.endpoint,
    )

    team.repository.remove(APPROVAL)
    team.flux.until_applied("support-endpoints", team.push("Forget the approval"))
    approved = team.api.get("Checkpoint", TEAM, checkpoint)
    assert approved is not None
    assert approved["spec"]["approval"]["state"] == "Approved"


def test_a_run_is_pruned_with_its_file_and_its_model_stays_live(team: Scene) -> None:
    before = deployments(team)
    checkpoints = {each["metadata"]["name"] for each in team.api.list("Checkpoint", TEAM)}
    for name in (RUN, "ticket-routing-5"):
        team.repository.remove(f"{RUNS}/{name}.yaml")
    team.flux.until_applied("support-runs", team.push("Remove finished runs"))
    for name in (RUN, "ticket-routing-5"):
        team.until_absent("FineTuneJob", name)
    team.flux.reconcile("support-endpoints")

    assert {each["metadata"]["name"] for each in team.api.list("Checkpoint", TEAM)} == checkpoints
    assert deployments(team) == before
    assert is_true(team.endpoint(), "Ready")


def deployments(team: Scene) -> dict[str, int]:
    """Generation of each Deployment of the team by uid."""
    found = team.api.list("Deployment", TEAM)
    return {each["metadata"]["uid"]: each["metadata"]["generation"] for each in found}


def test_repeated_reconciliations_change_nothing(team: Scene) -> None:
    assert_nothing_changes(team, lambda passes, _: passes < PASSES)


@pytest.mark.full
@pytest.mark.timeout(2 * SOAK_SECONDS)
def test_half_an_hour_of_reconciliations_changes_nothing(team: Scene) -> None:
    assert_nothing_changes(team, lambda _, seconds: seconds < SOAK_SECONDS)


def assert_nothing_changes(team: Scene, continues: Callable[[int, float], bool]) -> None:
    """Reconcile everything repeatedly: no object of the team is written, and nothing fails."""
    team.kubelet.held.clear()
    until_ready(team, *KUSTOMIZATIONS)
    until_settled(AuditLog(team.plane.audit_log), team.operators.user)
    since = {kind: str(team.api.resource_version(kind, TEAM)) for kind in KINDS}
    before = str(team.api.resource_version("Kustomization", NAMESPACE))
    running, started, passes = deployments(team), time.monotonic(), 0
    while continues(passes, time.monotonic() - started):
        for name in KUSTOMIZATIONS:
            team.flux.reconcile(name)
        seen = team.api.versions("Kustomization", NAMESPACE, before)
        assert {reason for each in seen if (reason := failure(each))} <= PASSING
        before = seen[-1]["metadata"]["resourceVersion"]
        passes += 1
    written = {kind: team.api.versions(kind, TEAM, version) for kind, version in since.items()}
    assert {kind: each for kind, each in written.items() if each} == {}
    assert deployments(team) == running


def failure(kustomization: Object) -> str | None:
    """Reason of Ready=False. While Flux reconciles, Ready is Unknown."""
    ready = condition(kustomization, "Ready")
    return str(ready["reason"]) if ready["status"] == "False" else None


def test_the_definitions_and_all_runs_outlive_the_kustomization_that_applied_them(team: Scene) -> None:
    before = uids(team)
    team.plane.kubectl.run(
        "delete", "kustomization.kustomize.toolkit.fluxcd.io", "finetune-crds", f"--namespace={NAMESPACE}"
    )
    assert uids(team) == before
    assert is_true(team.endpoint(), "Ready")


def uids(team: Scene) -> set[str]:
    """Uids of the definitions and of the team's runs."""
    definitions = team.plane.kubectl.get("crds")["items"]
    ours = [each for each in definitions if each["spec"]["group"] == GROUP]
    return {each["metadata"]["uid"] for each in (*ours, *team.api.list("FineTuneJob", TEAM))}
