# SPDX-License-Identifier: Apache-2.0
"""Flux installs, upgrades, rolls back and removes the charts as HelmReleases, as docs/gitops.md describes.

A team works meanwhile: a run trains, and an endpoint serves; neither may notice.
The tests are the steps of one story, in their order.
"""

from collections.abc import Iterator
from typing import Final

import pytest
import yaml

from tests.integration import manifests
from tests.integration.api import Object
from tests.integration.installation import SYSTEM
from tests.integration.manifests import condition, is_true
from tests.peers.fluxcontrollers import NAMESPACE, request
from tests.peers.helmreleases import (
    ABSENT,
    EXAMPLE,
    FIRST,
    PROFILE,
    PROFILES,
    RELEASES,
    TEAM,
    VERSION,
    Platform,
    platform,
    write_chart,
)
from tests.waiting import eventually
from tools.demo.install import DEFINITIONS, RELEASE

BOTH: Final = (DEFINITIONS, RELEASE)
SECOND: Final = "0.1.1"
PASSES: Final = 3
VALUES: Final = {DEFINITIONS: (), RELEASE: (f"--set=defaultProfile.name={PROFILE}",)}
"""Arguments of Helm for the values of a HelmRelease."""
KUSTOMIZATION: Final = ("kustomization.kustomize.toolkit.fluxcd.io", f"--namespace={NAMESPACE}")
FAILING: Final = {"timeout": "8s", "upgrade": {"remediation": {"retries": 1}}}


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with platform(tmp_path_factory.mktemp("helm")) as made:
        yield made


def until_ready(team: Platform, name: str) -> None:
    """Wait until a Kustomization is Ready."""
    eventually(
        f"{name} is Ready",
        lambda: team.flux.ready(name).get("status") == "True",
        90,
        lambda: yaml.safe_dump([team.flux.get(name)["status"], *map(team.releases.status, BOTH)]),
    )


def until(team: Platform, kind: str, name: str, type_: str) -> None:
    eventually(
        f"{kind} {name} is {type_}",
        lambda: is_true(team.api.get(kind, TEAM, name), type_),
        90,
        lambda: f"{team.api.get(kind, TEAM, name)}\n{team.operator.log[-4000:]}",
    )


def test_a_commit_installs_the_definitions_then_the_operator_then_the_profiles(team: Platform) -> None:
    until_ready(team, "finetune-releases")
    until_ready(team, "finetune-profiles")

    definitions, operator = (team.releases.last(name) for name in BOTH)
    assert (definitions["chartVersion"], operator["chartVersion"]) == (
        mark(team, DEFINITIONS),
        mark(team, RELEASE),
    )
    assert definitions["lastDeployed"] < operator["firstDeployed"]
    for profile in (PROFILE, "cpu-small"):
        assert is_true(team.api.get("ComputeProfile", "", profile), "Ready")


def until_refused(team: Platform, name: str) -> None:
    """Wait until a chart has no valid signature."""
    eventually(
        f"{name} is refused",
        lambda: condition(source(team, name), "SourceVerified").get("status") == "False",
        describe=lambda: yaml.safe_dump(source(team, name)),
    )


def mark(team: Platform, name: str) -> str:
    """Version of a chart, with the digest of its artifact."""
    found = source(team, name)
    _, _, digest = found["status"]["artifact"]["revision"].partition("@sha256:")
    return f"{found['spec']['ref']['tag']}+{digest[:12]}"


def source(team: Platform, name: str) -> Object:
    """The OCIRepository of a chart."""
    found = team.api.get("OCIRepository", SYSTEM, name)
    assert found is not None
    return found


def test_a_team_trains_and_serves(team: Platform) -> None:
    for name in ("artifacts", "models"):
        team.api.create(manifests.claim(TEAM, name))
    for file in sorted((EXAMPLE / "repository" / "teams").rglob("*.yaml")):
        manifest = yaml.safe_load(file.read_text())
        manifest["metadata"]["namespace"] = TEAM
        team.api.apply(manifest)
    until(team, "InferenceDeployment", "ticket-routing", "Ready")
    team.kubelet.held = {"train"}
    run = team.api.get("FineTuneJob", TEAM, "ticket-routing-1") or {}
    team.api.create(manifests.of("FineTuneJob", TEAM, "steady", {**run["spec"], "modelLine": "other"}))
    eventually("a run trains", lambda: team.kubelet.started.count("train") == 2, 90)


def test_values_of_a_commit_upgrade_the_release_and_nothing_of_the_team(team: Platform) -> None:
    kept = team.kept()
    team.write(values={"replicas": 2})
    commit = team.push("Two replicas")
    team.flux.until_applied("finetune-releases", commit)

    assert team.releases.until(RELEASE, status="deployed")["version"] == 2
    assert team.deployment()["status"]["readyReplicas"] == 2
    assert team.kept() == kept


def test_drift_detection_writes_nothing_while_nobody_changes_the_releases(team: Platform) -> None:
    before = [team.objects(name) for name in BOTH]
    for _ in range(PASSES):
        team.releases.reconcile(*BOTH)
    assert [team.objects(name) for name in BOTH] == before
    assert team.drifts() == []


def test_what_a_person_changes_in_the_release_is_put_back(team: Platform) -> None:
    kept, kubectl = team.kept(), team.plane.kubectl
    kubectl.run("scale", f"deployment/{RELEASE}", f"--namespace={SYSTEM}", "--replicas=5")
    kubectl.run(
        "patch", "computeprofile", PROFILE, "--type=merge", '--patch={"spec":{"accelerator":{"maxPerPod":3}}}'
    )
    kubectl.run("delete", "service", f"{RELEASE}-metrics", f"--namespace={SYSTEM}")
    kubectl.run("annotate", "crd", "datasets.finetune.dev", "helm.sh/resource-policy-")

    team.releases.reconcile(*BOTH)

    assert team.deployment()["spec"]["replicas"] == 2
    profile = team.api.get("ComputeProfile", "", PROFILE) or {}
    assert profile["spec"]["accelerator"]["maxPerPod"] == 8
    assert team.api.get("Service", SYSTEM, f"{RELEASE}-metrics")
    assert all(
        each["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for each in team.definitions()
    )
    assert team.drifts()
    assert team.releases.last(RELEASE)["version"] == 2
    assert team.kept() == kept


def test_a_new_version_upgrades_definitions_and_operator_when_it_is_signed(team: Platform) -> None:
    kept = team.kept()
    team.charts.push(SECOND)
    team.write(SECOND, {"defaultProfile": {"create": False}})
    commit = team.push("The next version, which nobody signed")
    for name in BOTH:
        until_refused(team, name)
    assert [team.releases.last(name)["version"] for name in BOTH] == [1, 2]

    team.charts.sign(SECOND)
    for name in BOTH:
        request(team.api, "OCIRepository", SYSTEM, name)
    team.flux.until_applied("finetune-releases", commit)

    for name in BOTH:
        team.releases.until(name, chartVersion=mark(team, name), status="deployed")
    assert {each["metadata"]["annotations"][VERSION] for each in team.definitions()} == {SECOND}
    assert team.deployment()["metadata"]["labels"]["helm.sh/chart"] == (
        f"{RELEASE}-{mark(team, RELEASE).replace('+', '_')}"
    )
    # The chart has no profile now. Its annotation `keep` counts.
    assert team.api.get("ComputeProfile", "", PROFILE)
    assert team.kept() == kept


def test_an_upgrade_whose_pods_do_not_become_ready_is_rolled_back(team: Platform) -> None:
    kept, before = team.kept(), team.deployment()
    team.write(SECOND, {"image": {"tag": ABSENT}}, **FAILING)
    team.push("An image that does not exist")

    eventually(
        "the upgrade is rolled back",
        lambda: is_true(team.releases.get(RELEASE), "Stalled"),
        90,
        lambda: yaml.safe_dump(team.releases.get(RELEASE)),
    )
    found = team.releases.get(RELEASE)
    assert condition(found, "Remediated")["reason"] == "RollbackSucceeded"
    assert condition(found, "Released")["reason"] == "UpgradeFailed"
    assert team.deployment()["spec"] == before["spec"]
    assert team.deployment()["status"]["readyReplicas"] == 1
    assert team.kept() == kept
    assert {each["metadata"]["annotations"][VERSION] for each in team.definitions()} == {SECOND}

    team.write(SECOND)
    team.flux.until_applied("finetune-releases", team.push("The image that exists"))
    team.releases.until(RELEASE, status="deployed")


def test_a_removed_kustomization_uninstalls_the_operator_and_keeps_every_object(team: Platform) -> None:
    kept = team.kept()
    team.plane.kubectl.run("delete", *KUSTOMIZATION, "finetune-releases")
    eventually(
        "the namespace is gone", lambda: not team.plane.kubectl.succeeds("get", "namespace", SYSTEM), 90
    )

    assert team.kept() == kept
    assert not team.plane.kubectl.succeeds("get", "clusterrole", RELEASE)
    assert team.api.get("ComputeProfile", "", PROFILE)


def test_flux_takes_over_releases_of_the_command_with_charts_from_git(team: Platform) -> None:
    kept = team.kept()
    for name in BOTH:
        team.helm_upgrade(name, SECOND, *VALUES[name])
    installed = set(team.objects())
    for name in BOTH:
        write_chart(name, SECOND, team.repository.tree / "charts")
    documents = list(yaml.safe_load_all((team.repository.tree / RELEASES).read_text()))
    for each in documents:
        if each["kind"] == "HelmRelease":
            name = each["metadata"]["name"]
            del each["spec"]["chartRef"]
            git = {"kind": "GitRepository", "name": "finetune", "namespace": NAMESPACE}
            each["spec"]["chart"] = {
                "spec": {"chart": f"charts/{name}", "sourceRef": git, "reconcileStrategy": "Revision"}
            }
    team.repository.write(RELEASES, *(each for each in documents if each["kind"] != "OCIRepository"))
    team.push("Charts of this repository")
    team.apply("flux-helm/platform.yaml")
    until_ready(team, "finetune-releases")

    for name in BOTH:
        assert team.releases.until(name, status="deployed")["version"] == 2
        assert str(team.releases.last(name)["chartVersion"]).startswith(f"{SECOND}+")
    assert set(team.objects()) <= installed
    assert team.kept() == kept


def test_the_repository_can_be_an_artifact_in_a_registry(team: Platform) -> None:
    kept, releases = team.kept(), [team.releases.last(name)["version"] for name in BOTH]
    profile = yaml.safe_load((team.repository.tree / PROFILES).read_text())
    team.repository.write("platform/profiles/another.yaml", {**profile, "metadata": {"name": "another"}})
    digest = team.push_artifact()
    team.apply("flux-oci/platform.yaml")

    for name in ("finetune-releases", "finetune-profiles"):
        team.flux.until_applied(name, digest)
    assert team.api.get("ComputeProfile", "", "another")
    assert [team.releases.last(name)["version"] for name in BOTH] == releases
    assert team.kept() == kept


def test_a_suspended_release_outlives_its_helmrelease(team: Platform) -> None:
    before = team.objects()
    team.api.patch("Kustomization", NAMESPACE, "finetune-releases", {"spec": {"deletionPolicy": "Orphan"}})
    team.plane.kubectl.run("delete", *KUSTOMIZATION, "finetune-releases")
    for name in BOTH:
        team.api.patch("HelmRelease", SYSTEM, name, {"spec": {"suspend": True}})
        team.plane.kubectl.run("delete", "helmrelease", name, f"--namespace={SYSTEM}")

    assert team.objects() == before
    team.helm_upgrade(RELEASE, FIRST, *VALUES[RELEASE])
    assert team.deployment()["metadata"]["labels"]["helm.sh/chart"] == f"{RELEASE}-{FIRST}"


def test_the_run_ends_and_is_promoted(team: Platform) -> None:
    team.kubelet.held.clear()
    until(team, "FineTuneJob", "steady", "Ready")
    assert team.kubelet.started.count("train") == 2
