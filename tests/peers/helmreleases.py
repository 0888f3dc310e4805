# SPDX-License-Identifier: Apache-2.0
"""The example of HelmReleases: the charts in a registry, installed by Flux next to the real operator."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from finetune_operator.api.crd import KINDS
from finetune_operator.api.meta import GROUP
from tests.docsblocks import blocks
from tests.fakekubelet import FakeKubelet
from tests.integration.api import Api, Object
from tests.integration.installation import SYSTEM
from tests.integration.manifests import condition
from tests.integration.operators import Operator, Operators
from tests.peers.fluxcontrollers import Flux, Reconciled, control_plane, controllers
from tests.peers.gitserver import Repository
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.commands import run
from tools.cluster.toolchain import CRANE, HELM, ORAS, ensure, program
from tools.demo.install import DEFINITIONS, RELEASE
from tools.fakepods import running
from tools.release.publish import CHARTS, chart_names
from tools.release.registry import OciRegistry, Registry
from tools.release.statements import BUNDLE, SIGNATURE, Artifact, SigningKey, statement

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "gitops"
RELEASES: Final = "platform/releases/finetune.yaml"
TEAM: Final = "support"
FIRST: Final = "0.1.0"
ABSENT: Final = "absent"
"""Tag of an image that no node can pull."""
SKIP: Final = {"crds": "Skip"}
MARKER: Final = "run by tests/peers/test_helmrelease.py"
PROFILE: Final = "of-the-chart"
WITH_PROFILE: Final = {"defaultProfile": {"create": True, "name": PROFILE}}
PROFILES: Final = "platform/profiles/cpu-small.yaml"
KEY: Final = "finetune-release-key"
VERIFIED: Final = {"verify": {"provider": "cosign", "secretRef": {"name": KEY}}}
VERSION: Final = "test.invalid/version"
"""Annotation of the definitions with the version of their chart."""


class OperatorKubelet(FakeKubelet):
    """Runs the pods of the operator's Deployment, except those with an absent image."""

    def _step(self, pod: Object) -> None:
        image = pod["spec"]["containers"][0]["image"]
        if pod["status"]["phase"] == "Pending" and not image.endswith(f":{ABSENT}"):
            self._patch(pod, running(pod))


class ChartRegistry:
    """A registry with versions of the charts of this tree, and the key that signs them.

    Attributes:
        folder: name of the folder in the registry, with its address.
        key: signs as `make release` does.
    """

    def __init__(self, registry: OciRegistry, files: Path) -> None:
        self.folder = f"{registry.address}/finetune"
        self.key = SigningKey(ec.generate_private_key(ec.SECP256R1()))
        self._registry = Registry(self.folder)
        self._files = files

    def push(self, version: str) -> None:
        """Push the charts with a version of their own."""
        for name in chart_names():
            write_chart(name, version, self._files / version)
            run([program("helm"), "package", self._files / version / name, "-d", self._files])
            self._registry.push_chart(self._files / f"{name}-{version}.tgz")

    def sign(self, version: str) -> None:
        """Attach a signature to each chart."""
        for name in chart_names():
            repository = f"{self.folder}/charts/{name}"
            digest = self._registry.digest(f"{repository}:{version}")
            assert digest is not None
            chart = Artifact(name, repository, (version,), digest)
            bundle = self._files / f"{name}-{version}.sigstore.json"
            bundle.write_text(self.key.sign(statement(chart, SIGNATURE, {})))
            annotations = {"dev.sigstore.bundle.predicateType": SIGNATURE}
            self._registry.attach(chart.reference, bundle, BUNDLE, annotations)


def write_chart(name: str, version: str, folder: Path) -> None:
    """Write the source of a chart with this version, which is also an annotation of its definitions."""
    chart = folder / name
    shutil.copytree(CHARTS / name, chart, dirs_exist_ok=True)
    facts = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**facts, "version": version}))
    for file in (chart / "definitions").glob("*.yaml"):
        mark = f"  annotations:\n    {VERSION}: {version}\n"
        file.write_text(file.read_text().replace("  annotations:\n", mark, 1))


class Releases(Reconciled):
    """The HelmReleases of both charts."""

    kind = "HelmRelease"
    namespace = SYSTEM

    def status(self, name: str) -> Object:
        """The status of a HelmRelease; empty before it exists."""
        status: Object = (self.api.get(self.kind, self.namespace, name) or {}).get("status", {})
        return status

    def last(self, name: str) -> Object:
        """The last release in the history; empty before the first."""
        last: Object = (self.status(name).get("history") or [{}])[0]
        return last

    def until(self, name: str, seconds: float = 60, **last: object) -> Object:
        """Wait until a HelmRelease is Ready at its present spec, and its last release has these fields."""
        eventually(
            f"{name} is {last}",
            lambda: self._is_settled(name) and self.last(name).items() >= last.items(),
            seconds,
            lambda: yaml.safe_dump(self.status(name)),
        )
        return self.last(name)

    def _is_settled(self, name: str) -> bool:
        found = self.api.get(self.kind, self.namespace, name)
        ready = condition(found, "Ready")
        is_observed = ready.get("observedGeneration") == (found or {}).get("metadata", {}).get("generation")
        return bool(is_observed and ready.get("status") == "True")


class Platform:
    """A platform team that installs the charts by HelmReleases in Git."""

    def __init__(self, plane: ControlPlane, api: Api, repository: Repository, charts: ChartRegistry) -> None:
        self.plane = plane
        self.api = api
        self.repository = repository
        self.charts = charts
        self.flux = Flux(api, "finetune")
        self.releases = Releases(api)
        self.url = ""
        self.kubelet: FakeKubelet
        self.operator: Operator

    def write(self, version: str = FIRST, values: Object | None = None, **spec: Any) -> None:
        """Write the example's releases with the charts of this registry in this version.

        Args:
            version: of both charts.
            values: of the operator's chart, in addition to those of its ComputeProfile.
            spec: other fields of the operator's HelmRelease.
        """
        text = (EXAMPLE / "repository" / RELEASES).read_text()
        documents = list(
            yaml.safe_load_all(text.replace("registry.example.com/finetune", self.charts.folder))
        )
        for each in documents:
            if each["kind"] == "OCIRepository":
                each["spec"] |= {"insecure": True, "ref": {"tag": version}, **VERIFIED}
            elif each["kind"] == "HelmRelease":
                # The definitions are no files of the folder crds: they do not depend on these settings.
                for action in ("install", "upgrade"):
                    each["spec"][action] |= SKIP
                if each["metadata"]["name"] == RELEASE:
                    each["spec"] |= spec
                    each["spec"]["values"] |= WITH_PROFILE | (values or {})
        self.repository.write(RELEASES, *documents)

    def push(self, message: str) -> str:
        """Push the working tree, notify Flux, and return the hash of the commit."""
        commit = self.repository.push(message)
        self.flux.notify()
        return commit

    def push_artifact(self) -> str:
        """Push the working tree to the registry with the command of docs/gitops.md, and return its digest."""
        (command,) = (block.text for block in blocks() if block.marker == MARKER)
        command = command.replace("registry.example.com/finetune", self.charts.folder)
        path = f"{program('oras').parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "REPOSITORY": str(self.repository.tree)}
        command = command.replace("oras push", "oras push --plain-http")
        with TemporaryDirectory() as folder:
            subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, check=True)
        digest = Registry(self.charts.folder).digest(f"{self.charts.folder}/gitops:main")
        assert digest is not None
        return digest

    def apply(self, file: str) -> None:
        """Apply a file of the example with this repository; the tests request each reconciliation."""
        for manifest in yaml.safe_load_all((EXAMPLE / file).read_text()):
            if manifest["kind"] == "GitRepository":
                manifest["spec"]["url"] = self.url
            elif manifest["kind"] == "OCIRepository":
                manifest["spec"] |= {"url": f"oci://{self.charts.folder}/gitops", "insecure": True}
            else:
                manifest["spec"] |= {"interval": "1h", "retryInterval": "2s"}
            self.api.apply(manifest)

    def helm(self, *arguments: str) -> str:
        return run([program("helm"), *arguments, f"--kubeconfig={self.plane.kubeconfig}", f"-n={SYSTEM}"])

    def helm_upgrade(self, name: str, version: str, *values: str) -> None:
        """Install or upgrade a chart of the registry without Flux, whose fields become those of Helm."""
        chart = (f"oci://{self.charts.folder}/charts/{name}", f"--version={version}", "--plain-http")
        options = ("--install", "--create-namespace", "--force-conflicts", *values)
        self.helm("upgrade", name, *chart, *options)

    def deployment(self) -> Object:
        """The operator's Deployment."""
        found = self.api.get("Deployment", SYSTEM, RELEASE)
        assert found is not None
        return found

    def objects(self, release: str = RELEASE) -> dict[str, str]:
        """Resource version of every object of a release by uid."""
        manifest = self.helm("get", "manifest", release)
        found = yaml.safe_load(self.plane.kubectl.run("get", "-f", "-", "-o", "yaml", text=manifest))
        return {each["metadata"]["uid"]: each["metadata"]["resourceVersion"] for each in found["items"]}

    def drifts(self) -> list[str]:
        """Messages of the events about drift."""
        events = self.plane.kubectl.get("events", f"--namespace={SYSTEM}")["items"]
        return [each["message"] for each in events if each["reason"].startswith("Drift")]

    def definitions(self) -> list[Object]:
        """Our definitions."""
        found = self.plane.kubectl.get("crds")["items"]
        return [each for each in found if each["spec"]["group"] == GROUP]

    def kept(self) -> Object:
        """Everything that no change of a release may affect."""
        kinds = [kind.name for kind in KINDS if kind.namespaced]
        return {
            "definitions": {each["metadata"]["uid"] for each in self.definitions()},
            "objects": {each["metadata"]["uid"] for kind in kinds for each in self.api.list(kind, TEAM)},
            "children": {
                each["metadata"]["uid"]: each["metadata"].get("generation")
                for kind in ("Job", "Deployment", "Pod")
                for each in self.api.list(kind, TEAM)
            },
        }


@contextmanager
def platform(folder: Path) -> Iterator[Platform]:
    """Flux with the first version of the charts in a registry, and the repository of the example."""
    ensure((HELM, CRANE, ORAS))
    with ExitStack() as stack:
        plane, api = stack.enter_context(control_plane("helm", TEAM))
        charts = ChartRegistry(stack.enter_context(OciRegistry(folder / "registry")), folder / "charts")
        charts.push(FIRST)
        charts.sign(FIRST)
        repository = Repository(folder)
        shutil.copytree(EXAMPLE / "repository" / "platform", repository.tree / "platform")
        profile = yaml.safe_load((repository.tree / PROFILES).read_text())
        # The profile of the chart is the default.
        repository.write(PROFILES, {**profile, "metadata": {"name": profile["metadata"]["name"]}})
        made = Platform(plane, api, repository, charts)
        made.url = stack.enter_context(repository.served())
        made.write()
        plane.kubectl.run("create", "namespace", SYSTEM)
        public = f"--from-literal=release.pub={charts.key.public}"
        plane.kubectl.run("create", "secret", "generic", KEY, public, f"--namespace={SYSTEM}")
        repository.push("The releases")
        stack.enter_context(controllers(plane, folder))
        kubelet = OperatorKubelet(api, SYSTEM)
        stack.callback(kubelet.close)
        made.apply("flux-helm/platform.yaml")
        made.releases.until(DEFINITIONS)
        operators = Operators(plane, TEAM, folder)
        stack.callback(operators.stop_all)
        made.operator = operators.start().wait_active()
        made.kubelet = FakeKubelet(api, TEAM)
        stack.callback(made.kubelet.close)
        yield made
