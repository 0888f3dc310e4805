# SPDX-License-Identifier: Apache-2.0
"""kubectl as the administrator of one cluster."""

import json
from pathlib import Path
from typing import Any, Final

from tools.cluster.commands import run, succeeds, until
from tools.cluster.toolchain import program

_SERVED_SECONDS: Final = 30


class Kubectl:
    """Runs the cluster's own kubectl, independent of PATH and KUBECONFIG."""

    def __init__(self, kubeconfig: Path) -> None:
        self._command = [str(program("kubectl")), f"--kubeconfig={kubeconfig}"]

    def run(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with `text` as its input, and return its output.

        Raises:
            ClusterError: it failed; the message contains kubectl's message.
        """
        return run([*self._command, *arguments], text=text)

    def succeeds(self, *arguments: str) -> bool:
        return succeeds([*self._command, *arguments])

    def define(self, manifests: str | Path) -> None:
        """Apply CustomResourceDefinitions and other manifests, and wait until the definitions are served.

        Args:
            manifests: a file or folder, or YAML text.

        Raises:
            ClusterError: a manifest was rejected, or a definition was not served in time.
        """
        if isinstance(manifests, Path):
            self.run("apply", "--server-side", f"--filename={manifests}")
        else:
            self.run("apply", "--server-side", "--filename=-", text=manifests)
        # kubectl wait fails at once if a definition has no conditions yet.
        served = ("wait", "crd", "--all", "--for=condition=Established", f"--timeout={_SERVED_SECONDS}s")
        until("the definitions to be served", lambda: self.succeeds(*served), _SERVED_SECONDS)

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object or a list of objects from the API server."""
        document: dict[str, Any] = json.loads(self.run("get", *arguments, "--output=json"))
        return document
