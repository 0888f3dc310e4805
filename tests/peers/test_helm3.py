# SPDX-License-Identifier: Apache-2.0
"""Helm 3 on a cluster with a node: from the base release to this one and back, while a run trains.

The tests are the steps of one story, in their order. tests/e2e/test_disasters.py does the same with Helm 4.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from finetune_operator.api.crd import KINDS
from tests.baserelease import BaseRelease
from tests.e2e import manifests, operatorpods, pods
from tests.e2e.pacing import FAST, LONG, SAVED, SLOW, STEPS, pace, resize
from tests.e2e.team import Team, is_running, new_namespace, uid_of
from tools.cluster import TestCluster
from tools.cluster.commands import run
from tools.cluster.layout import ISOLATED
from tools.cluster.toolchain import HELM3, KUBERNETES, program
from tools.demo.admin_access import AdminAccess
from tools.demo.install import CHART, DEFINITIONS, RELEASE, SYSTEM, images, install, install_operator
from tools.images.tags import References

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ or not HELM3.is_built(),
    reason="make test-peers builds Helm 3, and runs this in namespaces with a cluster",
)

NAMESPACE: Final = f"--namespace={SYSTEM}"
ASSIGNED: Final = 1000680000
"""A user id such as OpenShift assigns to the pods of a namespace."""


@dataclass(frozen=True)
class HelmScene:
    """A team's endpoint and training run, which must not notice what Helm does."""

    access: AdminAccess
    refs: References
    team: Team
    endpoint: Object
    run: Object

    def kept(self) -> Object:
        """Everything that a change of the release must not affect."""
        uid, team = uid_of(self.run), self.team
        kinds = [kind.name for kind in KINDS if kind.namespaced]
        return {
            "objects": {uid_of(each) for kind in kinds for each in self.access.objects(kind, team.namespace)},
            "jobs": sorted(uid_of(job) for job in team.children("jobs", uid)),
            "pods": sorted(uid_of(pod) for pod in team.children("pods", uid)),
            "serving": team.serving(self.endpoint),
            "settings": team.get("FineTuneJob", "steady")["status"]["resolved"],
        }

    def answers(self) -> bool:
        with (
            open_endpoint(self.access, "support", self.team.namespace) as endpoint,
            endpoint.client() as client,
        ):
            return ask(client, "tuned", "order late?") == "billing"


@pytest.fixture(scope="module")
def access() -> Iterator[AdminAccess]:
    with TestCluster():
        yield AdminAccess.from_environment("helm3")


@pytest.fixture(scope="module")
def scene(access: AdminAccess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HelmScene]:
    """The base release, whose endpoint serves and whose run trains."""
    refs = images()
    base = BaseRelease(tmp_path_factory.mktemp("base"))
    access.helm(
        "upgrade", "--install", DEFINITIONS, str(base.chart(DEFINITIONS)), NAMESPACE, "--create-namespace"
    )
    with_base = refs._replace(operator=base.operator_image(refs.operator))
    install_operator(access, with_base, base.chart(CHART.name))
    with new_namespace(access, "helm3", "restricted") as team:
        team.apply(
            manifests.profile(manifests.CPU),
            manifests.claim("artifacts"),
            manifests.claim("models"),
            manifests.configmap("tickets", manifests.jsonl("billing")),
            manifests.dataset("tickets", "tickets"),
        )
        pods.keep_model(team, refs.operator)
        team.apply(
            manifests.endpoint("support", "champion"),
            manifests.finetunejob("champion"),
            manifests.finetunejob("steady", **LONG),
        )
        run = team.get("FineTuneJob", "steady")
        pace(team, team.pod(uid_of(run), "train"), SAVED, SLOW)
        endpoint = team.until("InferenceDeployment", "support", "Ready")
        yield HelmScene(access, refs, team, endpoint, run)


def test_helm_3_it_is(access: AdminAccess) -> None:
    assert access.helm("version", "--template={{.Version}}") == HELM3.version


def test_both_helms_render_the_same_objects(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "podSecurityContext": {"runAsUser": None, "runAsGroup": None},
                "imagePullSecrets": ["a", {"name": "b"}],
                "runner": {"annotations": {"role": "x"}, "imagePullSecrets": [{"name": "a"}]},
                "commonLabels": {"team": "platform"},
                "monitors": {"enabled": True},
                "metrics": {"secure": True},
                "extraObjects": ["kind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\n"],
            }
        )
    )

    def rendered(helm: str, chart: str) -> list[Object]:
        # Official builds know the newest Kubernetes; a build from the Go module does not.
        options = (f"--values={file}", f"--kube-version={KUBERNETES.version}")
        text = run([program(helm), "template", RELEASE, CHART.with_name(chart), *options])
        return sorted((each for each in yaml.safe_load_all(text) if each), key=str)

    for chart in (CHART.name, DEFINITIONS):
        assert rendered("helm3", chart) == rendered("helm", chart)


def test_definitions_and_operator_are_upgraded_during_a_run(scene: HelmScene) -> None:
    older, kept = operatorpods.active(scene.access), scene.kept()

    install(scene.access, scene.refs)

    operatorpods.active(scene.access, other_than=(uid_of(older),))
    assert scene.kept() == kept
    assert f"{DEFINITIONS}\t" in scene.access.helm("list", NAMESPACE)


def test_a_rollback_keeps_the_definitions_and_the_pods(scene: HelmScene) -> None:
    new, kept = operatorpods.active(scene.access), scene.kept()

    scene.access.helm("rollback", RELEASE, "1", NAMESPACE, "--wait", "--timeout=3m")

    older = operatorpods.active(scene.access, other_than=(uid_of(new),))
    assert scene.kept() == kept

    install(scene.access, scene.refs)

    operatorpods.active(scene.access, other_than=(uid_of(new), uid_of(older)))
    assert scene.kept() == kept


def test_uninstalled_charts_are_installed_again_and_nothing_is_lost(scene: HelmScene) -> None:
    kept = scene.kept()

    for release in (RELEASE, DEFINITIONS):
        scene.access.helm("uninstall", release, NAMESPACE, "--wait")

    assert scene.kept() == kept
    assert scene.answers()

    install(scene.access, scene.refs)

    operatorpods.active(scene.access)
    assert scene.kept() == kept


def test_the_operator_runs_with_an_id_that_openshift_assigns(scene: HelmScene) -> None:
    before = operatorpods.active(scene.access)

    install(scene.access, scene.refs, podSecurityContext={"runAsUser": ASSIGNED, "runAsGroup": ASSIGNED})

    pod = operatorpods.active(scene.access, other_than=(uid_of(before),))
    assert pod["spec"]["securityContext"]["runAsUser"] == ASSIGNED


def test_the_run_ends_with_each_step_trained_once(scene: HelmScene) -> None:
    team, uid = scene.team, uid_of(scene.run)
    (pod,) = filter(is_running, team.children("pods", uid, "train"))
    resize(team, pod, FAST)

    ended = team.until("FineTuneJob", "steady", "Ready")

    (job,) = team.children("jobs", uid, "train")
    assert job["status"]["succeeded"] == 1
    assert ended["status"]["training"]["steps"] == STEPS
    assert not ended["status"]["training"].get("restarts")
