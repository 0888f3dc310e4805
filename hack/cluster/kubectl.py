"""kubectl as the administrator of one cluster."""

import json
from pathlib import Path
from typing import Any

from hack.cluster.commands import run, succeeds
from hack.cluster.toolchain import program


class Kubectl:
    """Runs the kubectl that belongs to the cluster, whatever PATH and KUBECONFIG say."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(program("kubectl")), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, text: str | None = None) -> str:
        """Its output. Raises ClusterError with its message if it fails."""
        return run([*self._command, *arguments], text=text)

    def succeeds(self, *arguments: str) -> bool:
        return succeeds([*self._command, *arguments])

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as the API server has it."""
        document: dict[str, Any] = json.loads(self.run("get", *arguments, "--output=json"))
        return document
