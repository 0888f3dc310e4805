# SPDX-License-Identifier: Apache-2.0
"""Run the blocks of a page in order, in one folder, as a user who has only kubectl, Helm, oras and cosign."""

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.docsblocks import ROOT, blocks
from tools.cluster.toolchain import program
from tools.peers.toolchain import COSIGN

MARKER: Final = "run by tests/peers/test_release.py"
"""Of the blocks that are run."""

END_JOBS: Final = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
"""Otherwise a `port-forward` would outlive a command that failed, and keep the output open."""


@dataclass(frozen=True)
class DocumentedSteps:
    """A shell for the blocks of pages.

    Attributes:
        folder: current folder of the commands; not a checkout.
        kubeconfig: configuration of kubectl.
        names: texts on the pages, and those that replace them.
        environment: more variables of the commands.
    """

    folder: Path
    kubeconfig: Path
    names: Mapping[str, str]
    environment: Mapping[str, str]

    def run(self, page: str) -> list[str]:
        """Run all blocks of a page that have the marker. Returns the output of each.

        Raises:
            AssertionError: a command failed; the message has the block and its output.
        """
        found = [block for block in blocks() if block.page.name == page and block.marker == MARKER]
        assert found, page
        return [self.shell(block.text) for block in found]

    def write_values(self, page: str, name: str, profile: dict[str, Any], **more: object) -> None:
        """Write the values file `name` of a page, with more values and fields of the default profile."""
        values = yaml.safe_load(self.file(page, name)) | more
        values["defaultProfile"]["spec"] |= profile
        (self.folder / name).write_text(yaml.safe_dump(values))

    def file(self, page: str, name: str) -> str:
        """Content of the file `name`, a block with its name as a comment, in which names are replaced."""
        text = (ROOT / "docs" / page).read_text()
        found = re.search(rf"^```\w+\n# {re.escape(name)}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        assert found is not None, f"{page} has no {name}"
        return self._replaced(found[1])

    def shell(self, text: str) -> str:
        """Output of commands, in which names of the pages are replaced.

        Raises:
            AssertionError: a command failed.
        """
        text = self._replaced(text)
        folders = {str(COSIGN.folder), *(str(program(name).parent) for name in ("kubectl", "helm", "oras"))}
        environment = {
            "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
            "KUBECONFIG": str(self.kubeconfig),
            "HOME": str(self.folder),
            "NO_PROXY": "127.0.0.1",
            **self.environment,
        }
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{END_JOBS}\n{text}"],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _replaced(self, text: str) -> str:
        for name, replacement in self.names.items():
            text = text.replace(name, replacement)
        return text
