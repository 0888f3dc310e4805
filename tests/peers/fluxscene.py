# SPDX-License-Identifier: Apache-2.0
"""The example of GitOps: its repository with our chart, reconciled by Flux next to the real operator."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from tests.docsblocks import ROOT, blocks
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.operators import Operator, Operators
from tests.peers.fluxcontrollers import Flux, control_plane, controllers
from tests.peers.gitserver import Repository
from tests.waiting import eventually
from tools.cluster import ControlPlane, program
from tools.cluster.toolchain import HELM, ensure
from tools.fakepods import succeeded

EXAMPLE: Final = ROOT / "examples" / "gitops"
TEAM: Final = "support"
RUN: Final = "ticket-routing-1"
RUNS: Final = "teams/support/runs"
APPROVAL: Final = "teams/support/endpoints/approval.yaml"
QUICK: Final = {"interval": "1h", "retryInterval": "2s"}
"""Instead of the example's intervals. The tests request each reconciliation, as a webhook does."""
CHANGES: Final[dict[str, Object]] = {
    # No node runs the pod of its Deployment.
    "finetune-operator": {"wait": False},
    # The annotations of the definitions must protect them.
    "finetune-crds": {"prune": True},
}


class Outcomes:
    """Results of stages; training fails while `fails` is set."""

    def __init__(self) -> None:
        self.fails = False

    def __call__(self, config: StageConfig) -> StageResult:
        result = succeeded(config)
        if not (self.fails and result.stage == "train"):
            return result
        failure: dict[str, Any] = {"outcome": "Failed", "reason": "StageFailed", "message": "no weights"}
        return result.model_copy(update=failure | {"train": None})


class Scene:
    """A team that works through Git."""

    def __init__(self, plane: ControlPlane, api: Api, repository: Repository) -> None:
        self.plane = plane
        self.api = api
        self.repository = repository
        self.flux = Flux(api, "finetune")
        self.outcomes = Outcomes()
        self.operators: Operators
        self.operator: Operator
        self.kubelet: FakeKubelet

    def push(self, message: str) -> str:
        """Push the working tree, notify Flux, and return the hash of the commit."""
        commit = self.repository.push(message)
        self.flux.notify()
        return commit

    def run(self, name: str = RUN) -> Object | None:
        return self.api.get("FineTuneJob", TEAM, name)

    def endpoint(self) -> Object | None:
        return self.api.get("InferenceDeployment", TEAM, "ticket-routing")

    def write_run(self, name: str, **spec: Any) -> None:
        """Write the file of a run that is like the first one."""
        manifest = yaml.safe_load((EXAMPLE / "repository" / RUNS / f"{RUN}.yaml").read_text())
        manifest["metadata"]["name"] = name
        manifest["spec"] |= spec
        self.repository.write(f"{RUNS}/{name}.yaml", manifest)

    def write_approval(self, checkpoint: str) -> None:
        """Write the file that approves a Checkpoint: only the fields of the approval."""
        annotations = {"kustomize.toolkit.fluxcd.io/prune": "disabled"}
        manifest = manifests.of("Checkpoint", TEAM, checkpoint, {"approval": {"state": "Approved"}})
        manifest["metadata"]["annotations"] = annotations
        self.repository.write(APPROVAL, manifest)

    def until(self, kind: str, name: str, type_: str, seconds: float = 60) -> Object:
        """Wait until the condition of an object of the team is True, and return it."""
        return eventually(
            f"{kind} {name} is {type_}",
            lambda: manifests.condition(self.api.get(kind, TEAM, name), type_) or None,
            seconds,
            lambda: f"{self.api.get(kind, TEAM, name)}\n{self.operator.log[-4000:]}",
        )

    def until_training(self, count: int) -> None:
        """Wait until the pods of this many train stages run or have run."""
        eventually(
            f"{count} runs train",
            lambda: self.kubelet.started.count("train") == count,
            90,
            lambda: self.operator.log[-4000:],
        )

    def until_absent(self, kind: str, name: str, seconds: float = 60) -> None:
        eventually(f"{kind} {name} is gone", lambda: self.api.get(kind, TEAM, name) is None, seconds)


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """The platform, reconciled from Git, with a running operator and a namespace for the team."""
    with ExitStack() as stack:
        plane, api = stack.enter_context(control_plane("flux", TEAM))
        repository = Repository(folder)
        fill(repository.tree)
        repository.push("The platform and the first run of a team")
        url = stack.enter_context(repository.served())
        stack.enter_context(controllers(plane, folder, ("source-controller", "kustomize-controller")))

        made = Scene(plane, api, repository)
        apply(api, "platform.yaml", url)
        eventually(
            "the definitions are served",
            lambda: made.flux.ready("finetune-crds").get("status") == "True",
            60,
            lambda: made.flux.get("finetune-crds"),
        )
        for name in ("artifacts", "models"):
            api.create(manifests.claim(TEAM, name))
        made.operators = Operators(plane, TEAM, folder)
        stack.callback(made.operators.stop_all)
        made.operator = made.operators.start().wait_active()
        made.kubelet = FakeKubelet(api, TEAM, made.outcomes)
        stack.callback(made.kubelet.close)
        yield made


def fill(tree: Path) -> None:
    """Write the example's repository, with the manifests of the platform as docs/gitops.md writes them."""
    shutil.copytree(EXAMPLE / "repository", tree, dirs_exist_ok=True)
    ensure((HELM,))
    (commands,) = (block.text for block in blocks() if block.marker == "run by tests/peers/test_flux.py")
    commands = commands.replace("oci://registry.example.com/finetune/charts", str(ROOT / "charts"))
    path = f"{program('helm').parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "REPOSITORY": str(tree)}
    subprocess.run(["bash", "-euc", commands], cwd=ROOT, env=environment, check=True)


def apply(api: Api, file: str, url: str = "") -> None:
    """Apply a file of the example with this repository and the intervals of the tests."""
    for manifest in yaml.safe_load_all((EXAMPLE / "flux" / file).read_text()):
        if manifest["kind"] == "GitRepository":
            manifest["spec"]["url"] = url
        else:
            manifest["spec"] |= QUICK | CHANGES.get(manifest["metadata"]["name"], {})
        api.apply(manifest)
