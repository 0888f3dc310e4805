# SPDX-License-Identifier: Apache-2.0
"""A real OCI registry (`crane registry serve`) whose content is a folder."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import httpx

from tools.cluster.commands import until
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT
from tools.cluster.toolchain import CRANE, ensure, program

LOOPBACK: Final = "127.0.0.1"
"""containerd, buildah, crane and Helm use plain HTTP for it, the first and third without a setting."""
START_SECONDS: Final = 30


@dataclass
class OciRegistry:
    """A registry without accounts."""

    root: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as in the name of an image."""
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start the registry, and wait until it answers.

        Raises:
            ClusterError: crane could not be built, or the registry does not answer.
        """
        ensure([CRANE])
        self.root.mkdir(exist_ok=True)
        options = ("--address", self.address, "--disk", self.root)
        self._process = subprocess.Popen(
            [*WITH_PARENT, program("crane"), "registry", "serve", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until("the registry on this machine", self._is_up, START_SECONDS)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def crane(self, *arguments: str) -> str:
        """Output of a command of the client.

        Raises:
            subprocess.CalledProcessError: it failed; its message is on the terminal.
        """
        done = subprocess.run(
            [program("crane"), *arguments],
            env={**os.environ, "NO_PROXY": LOOPBACK},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/v2/", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.stop()
