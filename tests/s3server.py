# SPDX-License-Identifier: Apache-2.0
"""A real S3 server (versitygw) for a folder."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import httpx

from finetune_trainer.contract.references import SecretMount, StoreConfig
from tests.waiting import eventually
from tools.cluster.layout import free_port
from tools.cluster.toolchain import VERSITYGW, ensure, program

ACCESS_KEY: Final = "test-access-key"
SECRET_KEY: Final = "test-secret-key"


@dataclass
class S3Server:
    """A server whose buckets are the folders in `root`, and whose objects are the files in them."""

    root: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        ensure([VERSITYGW])
        self.root.mkdir(exist_ok=True)
        keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        address = f"{self.host}:{self.port}"
        command = [str(program("versitygw")), "--port", address, "--quiet", "--health", "/health"]
        self._process = subprocess.Popen(
            [*command, "posix", str(self.root)],
            env={**os.environ, **keys},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        eventually("the S3 server answers", self._is_up)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def bucket(self, name: str) -> Path:
        """Create a bucket, and return the folder of its objects."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        return folder

    def secret(self, folder: Path, **changes: str) -> SecretMount:
        """A credentials Secret as mounted in a pod, in a new folder."""
        values = {
            "endpoint": self.endpoint,
            "accessKeyId": ACCESS_KEY,
            "secretAccessKey": SECRET_KEY,
            **changes,
        }
        return self._mounted(folder, values)

    def ordinary_secret(self, folder: Path, **changes: str) -> SecretMount:
        """A Secret with the names that AWS's own programs use, as mounted in a pod, in a new folder."""
        values = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            **changes,
        }
        return self._mounted(folder, values)

    @staticmethod
    def _mounted(folder: Path, values: dict[str, str]) -> SecretMount:
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in values.items():
            (folder / key).write_text(value)
        return SecretMount(name="artifacts-s3", path=str(folder))

    def store(self, scratch: Path, uri: str = "s3://artifacts/team", **changes: str) -> StoreConfig:
        """A store on this server for a pod with the local volume `scratch`."""
        secret = self.secret(scratch.with_name(f"{scratch.name}-secret"), **changes)
        return StoreConfig(uri=uri, path=str(scratch), credentials=secret)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _is_up(self) -> bool:
        try:
            return httpx.get(f"{self.endpoint}/health", trust_env=False).is_success
        except httpx.TransportError:
            return False
