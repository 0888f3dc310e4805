# SPDX-License-Identifier: Apache-2.0
"""The commands of installation.md, quickstart.md, models.md and results.md are accepted by a real API server.

tests/peers/test_release.py runs them on a node and from a registry. This is a quick check without a node:
lines that need running pods or a registry are left out, and the charts come from the tree.
"""

import csv
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.docsblocks import ROOT, blocks
from tools.cluster import ControlPlane, program
from tools.cluster.toolchain import HELM, ensure

MARKER: Final = "run by tests/peers/test_release.py"
PAGES: Final = ("installation.md", "quickstart.md", "models.md", "results.md")
VALUES: Final = {"installation.md": "platform.yaml", "quickstart.md": "values.yaml"}
"""Values file that a page writes."""
NEEDS_PODS: Final = re.compile(
    r"kubectl (-n \S+ )?(wait|rollout|cp|port-forward)|oras|curl|  --(header|data)|kill|fetch|until"
)
IMAGE: Final = re.compile(r"\$\(kubectl .*trainerImage\}'\)")


@dataclass(frozen=True)
class User:
    """A user in a folder that is not a checkout, with kubectl and Helm only."""

    folder: Path
    kubeconfig: Path

    def run(self, text: str) -> str:
        """Output of commands.

        Raises:
            AssertionError: one failed; the message has its output.
        """
        folders = [str(program(name).parent) for name in ("kubectl", "helm")]
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={
                "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
                "KUBECONFIG": str(self.kubeconfig),
                "HOME": str(self.folder),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    ensure([HELM])
    with ControlPlane(f"docs-{os.getpid()}") as plane:
        yield User(tmp_path_factory.mktemp("user"), plane.kubeconfig)
    plane.purge()


def without_pods(text: str) -> str:
    """The lines of a block that need neither a running pod nor a registry."""
    if "oras cp" in text:
        return ""
    text = text.replace("oci://registry.example.com/finetune/charts", str(ROOT / "charts"))
    text = IMAGE.sub("registry.example.com/finetune/finetune-trainer", text).replace(" --wait", "")
    lines = [line for line in text.splitlines() if not NEEDS_PODS.match(line)]
    return "\n".join(lines)


def values(page: str, name: str) -> str:
    """Text of the values file `name` on a page."""
    found = re.search(rf"^```yaml\n# {name}\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.S | re.M)
    assert found is not None, f"{page} has no {name}"
    return found[1]


def test_the_documented_installation_is_accepted_from_the_first_to_the_last_command(user: User) -> None:
    for page in PAGES:
        if page in VALUES:
            (user.folder / VALUES[page]).write_text(values(page, VALUES[page]))
        for block in (each for each in blocks() if each.page.name == page and each.marker == MARKER):
            user.run(without_pods(block.text))

    objects = yaml.safe_load(user.run("kubectl get finetune,job,pvc,configmap,secret -n team-a -o yaml"))
    created = {(each["kind"], each["metadata"]["name"]): each for each in objects["items"]}
    assert created.keys() >= {
        ("Dataset", "rows"),
        ("FineTuneJob", "routing"),
        ("InferenceDeployment", "routing"),
        ("PersistentVolumeClaim", "artifacts"),
        ("PersistentVolumeClaim", "models"),
        ("ConfigMap", "rows"),
        ("Secret", "gated"),
    }
    rows = created["ConfigMap", "rows"]["data"]["rows.csv"]
    assert len(list(csv.DictReader(rows.splitlines()))) == 36


def test_the_pods_of_the_documentation_are_restricted(user: User) -> None:
    """The namespace refuses the pod `copy` otherwise, and only warns about the Job `results`."""
    texts = [block.text for block in blocks() if block.page.name == "results.md" and block.marker == MARKER]
    job = without_pods(next(text for text in texts if "kind: Job" in text))
    warnings = user.run(f"{{ {job.replace('apply', 'apply --dry-run=server', 1)}\n}} 2>&1")
    assert "violate PodSecurity" not in warnings
