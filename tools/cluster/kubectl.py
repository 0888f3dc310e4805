"""kubectl as the administrator of one cluster."""

import json
from pathlib import Path
from typing import Any, Final

from tools.cluster.commands import run, succeeds
from tools.cluster.toolchain import program
from tools.cluster.waiting import until

_SERVED_SECONDS: Final = 30


class Kubectl:
    """Runs the kubectl that belongs to the cluster, whatever PATH and KUBECONFIG say."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(program("kubectl")), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, text: str | None = None) -> str:
        """Its output. Raises ClusterError with its message if it fails."""
        return run([*self._command, *arguments], text=text)

    def succeeds(self, *arguments: str) -> bool:
        return succeeds([*self._command, *arguments])

    def define(self, manifests: str | Path) -> None:
        """Apply CustomResourceDefinitions, and what comes with them, and wait until they are served.

        Args:
            manifests: a file or folder, or the YAML itself.

        Raises:
            ClusterError: they are refused, or not served in time.
        """
        if isinstance(manifests, Path):
            self.run("apply", "--server-side", f"--filename={manifests}")
        else:
            self.run("apply", "--server-side", "--filename=-", text=manifests)
        # One that has no conditions yet makes kubectl wait fail at once.
        served = ("wait", "crd", "--all", "--for=condition=Established", f"--timeout={_SERVED_SECONDS}s")
        until("the definitions are not served", lambda: self.succeeds(*served), _SERVED_SECONDS)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as the API server has it."""
        document: dict[str, Any] = json.loads(self.run("get", *arguments, "--output=json"))
        return document
