# SPDX-License-Identifier: Apache-2.0
"""The chart of the definitions, installed by Helm on a real API server: no object is lost with them."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from finetune_operator.api.crd import KINDS, PROTECTION
from finetune_operator.api.meta import GROUP
from tests.baserelease import BaseRelease
from tools.cluster import ClusterError, ControlPlane, program
from tools.cluster.commands import run
from tools.cluster.toolchain import HELM, Tool, ensure

CHARTS: Final = Path(__file__).parents[2] / "charts"
OPERATOR: Final = "finetune-operator"
DEFINITIONS: Final = "finetune-operator-crds"
NAMES: Final = {f"{kind.plural}.{GROUP}" for kind in KINDS}
TAKE_OVER: Final = ("--take-ownership", "--force-conflicts")


class Releases:
    """Helm on a control plane of its own, and a ComputeProfile that must outlive everything."""

    def __init__(self, plane: ControlPlane, base: BaseRelease) -> None:
        self.kubectl = plane.kubectl
        self.base = base
        self._helm = [str(program("helm")), f"--kubeconfig={plane.kubeconfig}", "--namespace=finetune-system"]

    def helm(self, *arguments: str) -> None:
        run([*self._helm, *arguments])

    def install(self, name: str, *options: str, chart: Path | None = None) -> None:
        path = chart or CHARTS / name
        self.helm("upgrade", "--install", "--create-namespace", name, str(path), *options)

    def profile(self) -> str:
        uid: str = self.kubectl.get("computeprofile", "default")["metadata"]["uid"]
        return uid

    def definitions(self) -> dict[str, str]:
        """Uid of each definition."""
        found = self.kubectl.get("crd")["items"]
        return {each["metadata"]["name"]: each["metadata"]["uid"] for each in found}

    def clear(self) -> None:
        for name in (OPERATOR, DEFINITIONS):
            self.helm("uninstall", "--ignore-not-found", "--wait", name)
        if self.definitions():
            # The API server retries the deletion of a definition that it does not serve yet after minutes.
            self.kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=120s")
            self.kubectl.run("delete", "crd", "--all")


@pytest.fixture(scope="module")
def plane(kubernetes: Tool) -> Iterator[ControlPlane]:
    """A control plane without our definitions."""
    ensure((HELM,))
    plane = ControlPlane(f"helm-{os.getpid()}", kubernetes)
    with plane:
        yield plane
    plane.purge()


@pytest.fixture
def releases(plane: ControlPlane, tmp_path: Path) -> Iterator[Releases]:
    made = Releases(plane, BaseRelease(tmp_path / "base"))
    yield made
    made.clear()


def test_definitions_that_kubectl_applied_join_the_chart(releases: Releases) -> None:
    releases.kubectl.run("apply", "--server-side", f"--filename={CHARTS.parent / 'crds'}")
    before = releases.definitions()
    with pytest.raises(ClusterError, match="invalid ownership metadata"):
        releases.install(DEFINITIONS)

    releases.install(DEFINITIONS, *TAKE_OVER)

    assert releases.definitions() == before


def test_an_upgrade_with_the_base_releases_values_and_a_rollback_lose_no_object(
    releases: Releases,
) -> None:
    releases.base.remove_field("finetunejobs", "status", "live")
    for name in (DEFINITIONS, OPERATOR):
        releases.install(name, chart=releases.base.chart(name))
    profile, before = releases.profile(), releases.definitions()

    releases.install(DEFINITIONS)
    releases.install(OPERATOR, f"--values={releases.base.chart(OPERATOR) / 'values.yaml'}")

    after = releases.definitions()
    assert set(after) == NAMES
    assert before.items() <= after.items()
    for each in releases.kubectl.get("crd")["items"]:
        assert each["metadata"]["annotations"].items() >= PROTECTION.items()
        assert each["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"

    releases.helm("rollback", OPERATOR, "1")
    assert releases.definitions() == after
    releases.install(DEFINITIONS)
    releases.install(OPERATOR)
    releases.helm("uninstall", OPERATOR)
    releases.helm("uninstall", DEFINITIONS)
    assert releases.definitions() == after
    assert releases.profile() == profile


def test_uninstalled_charts_are_installed_again_or_taken_over_by_another_release(
    releases: Releases,
) -> None:
    releases.install(DEFINITIONS)
    releases.install(OPERATOR)
    profile, definitions = releases.profile(), releases.definitions()
    for name in (OPERATOR, DEFINITIONS):
        releases.helm("uninstall", name)

    releases.install(DEFINITIONS)
    releases.install(OPERATOR)

    assert (releases.profile(), releases.definitions()) == (profile, definitions)
    releases.helm("uninstall", OPERATOR)
    other = ("upgrade", "--install", "other", str(CHARTS / OPERATOR))
    with pytest.raises(ClusterError, match="invalid ownership metadata"):
        releases.helm(*other)

    releases.helm(*other, "--take-ownership")

    assert releases.profile() == profile
    releases.helm("uninstall", "other")


def test_without_the_definitions_helm_says_what_to_install_first(releases: Releases) -> None:
    with pytest.raises(ClusterError, match="ensure CRDs are installed first"):
        releases.install(OPERATOR)


def test_the_chart_has_the_definitions_of_this_release_byte_for_byte() -> None:
    command = [str(program("helm")), "template", DEFINITIONS, str(CHARTS / DEFINITIONS)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for path in sorted((CHARTS.parent / "crds").iterdir()):
        assert path.read_text() in rendered
