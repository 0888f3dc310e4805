# SPDX-License-Identifier: Apache-2.0
"""A real registry with an account and TLS by a CA of its own: that of CNCF Distribution."""

import base64
import json
import os
import ssl
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import httpx

from tests.waiting import eventually
from tools.cluster.credentials import Authority
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT
from tools.cluster.toolchain import PRIVATE_REGISTRY, ensure, program

ADDRESS: Final = "127.0.0.2"
"""Of this machine, and without the exceptions that clients make for localhost and 127.0.0.1."""
USER: Final = "USER"
PASSWORD: Final = "PASSWORD"
"""As on the pages of the documentation."""
ACCOUNTS: Final = "USER:$2b$04$V.uWY2g/zfpcSfK08U6i8ejdoBD0tNMj9UbZz8eq9tfD.O80w71Ia\n"
"""The account as a line of htpasswd, with bcrypt."""

ACCEPTED: Final = (
    "*/*",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
)


@dataclass
class PrivateRegistry:
    """A registry that only the account above may read and write."""

    folder: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port, as in the name of an image."""
        return f"{ADDRESS}:{self.port}"

    @cached_property
    def authority(self) -> Authority:
        """The CA that signed its certificate."""
        return Authority.create(self.folder / "pki", "registry of the tests")

    @property
    def ca(self) -> Path:
        """Certificate of the CA."""
        return self.authority.directory / "ca.crt"

    def start(self) -> None:
        ensure([PRIVATE_REGISTRY])
        self.authority.write("registry", self.authority.issue("registry", hosts=[ADDRESS]))
        (self.folder / "htpasswd").write_text(ACCOUNTS)
        pki = self.authority.directory
        settings = {
            "version": 0.1,
            "log": {"accesslog": {"disabled": True}, "level": "error"},
            "storage": {
                "filesystem": {"rootdirectory": str(self.folder / "content")},
                "delete": {"enabled": True},
            },
            "auth": {"htpasswd": {"realm": "tests", "path": str(self.folder / "htpasswd")}},
            "http": {
                "addr": self.address,
                "secret": "shared by replicas",
                "tls": {"certificate": str(pki / "registry.crt"), "key": str(pki / "registry.key")},
            },
        }
        file = self.folder / "registry.yaml"
        file.write_text(json.dumps(settings))
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [*WITH_PARENT, program("private-registry"), file], stdout=log, stderr=log
            )
        eventually("the registry answers", self._is_up, describe=(self.folder / "log").read_text)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self, *, password: str = PASSWORD) -> httpx.Client:
        """A client with the account."""
        return httpx.Client(
            base_url=f"https://{self.address}/v2/",
            auth=(USER, password),
            headers={"Accept": ", ".join(ACCEPTED)},
            verify=ssl.create_default_context(cafile=self.ca),
            trust_env=False,
        )

    def log_in(self, folder: Path) -> dict[str, str]:
        """Environment of clients that trust the CA and have the account, in a file in `folder`."""
        file = folder / "config.json"
        auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        file.write_text(json.dumps({"auths": {self.address: {"auth": auth}}}))
        return {
            **os.environ,
            "DOCKER_CONFIG": str(folder),
            "REGISTRY_AUTH_FILE": str(file),
            "SSL_CERT_FILE": str(self.ca),
        }

    def _is_up(self) -> bool:
        try:
            with self.client() as client:
                return client.get("").is_success
        except httpx.TransportError:
            return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.stop()
