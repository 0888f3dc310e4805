"""The chart on a real API server, and the rights that it grants."""

import subprocess
from pathlib import Path
from typing import Final

from tools.cluster import ControlPlane, program
from tools.cluster.binaries import ensure
from tools.cluster.toolchain import HELM

CHART: Final = Path(__file__).parents[2] / "charts" / "finetune-operator"
SYSTEM: Final = "finetune-system"
OPERATOR: Final = f"system:serviceaccount:{SYSTEM}:finetune-operator"


def rendered() -> str:
    """The manifests of the chart with its default values."""
    ensure((HELM,))
    command = [str(program("helm")), "template", "finetune-operator", str(CHART), f"--namespace={SYSTEM}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def can(cluster: ControlPlane, user: str, verb: str, resource: str, namespace: str = "") -> bool:
    """Whether the user has a right, in one namespace or in all."""
    name, _, subresource = resource.partition("/")
    options = [f"--namespace={namespace}"] if namespace else ["--all-namespaces"]
    options += [f"--subresource={subresource}"] if subresource else []
    return cluster.kubectl.succeeds("auth", "can-i", verb, name, f"--as={user}", *options, "--quiet")
