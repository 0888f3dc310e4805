# SPDX-License-Identifier: Apache-2.0
"""A release in a private registry on this machine, and the statements that a client finds there."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.privateregistry import PrivateRegistry
from tools.bootstrap.uv import ROOT
from tools.cluster.toolchain import program

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
FOLDER: Final = "finetune"
Document = dict[str, Any]


@dataclass(frozen=True)
class SignedRelease:
    """A release that `make release` pushed into `registry`, signed with the key of the file `public`."""

    registry: PrivateRegistry
    artifacts: dict[str, Document]
    public: Path

    @property
    def prefix(self) -> str:
        return f"{self.registry.address}/{FOLDER}"

    def bundles(self, name: str, folder: Path) -> list[Path]:
        """Fetch the bundles that refer to an artifact.

        The registry has no API for referrers; then their index has a tag that is made from the digest.
        """
        repository = self._repository(name)
        tag = self.artifacts[name]["digest"].replace(":", "-")
        index = self._get(repository, "manifests", tag).json()
        found = []
        for number, each in enumerate(index["manifests"]):
            assert each["artifactType"] == BUNDLE
            (layer,) = self._get(repository, "manifests", each["digest"]).json()["layers"]
            assert layer["mediaType"] == BUNDLE
            file = folder / f"{name}-{number}.json"
            file.write_bytes(self._get(repository, "blobs", layer["digest"]).content)
            found.append(file)
        return found

    def digest(self, name: str, tag: str) -> str:
        """Digest of the manifest of an artifact that has a tag."""
        repository = self._repository(name)
        digest: str = self._get(repository, "manifests", tag).headers["docker-content-digest"]
        return digest

    def verify(self, bundle: Path, digest: str, key: Path | None = None) -> Document:
        """The statement in a bundle, verified by Sigstore's library.

        Raises:
            AssertionError: another digest or another key; the message is the library's.
        """
        command: list[str | Path] = [
            program("verify-bundle"),
            "-key",
            key or self.public,
            "-digest",
            digest,
            bundle,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        statement: Document = json.loads(done.stdout)
        return statement

    def _repository(self, name: str) -> str:
        repository: str = self.artifacts[name]["repository"]
        return repository.removeprefix(f"{self.registry.address}/")

    def _get(self, repository: str, kind: str, digest: str) -> httpx.Response:
        with self.registry.client() as client:
            return client.get(f"{repository}/{kind}/{digest}").raise_for_status()


def make_release(registry: PrivateRegistry, key: Path) -> SignedRelease:
    """Run the module of `make release` for the CPU variant, with the credentials in the folder of the key."""
    environment = {
        **registry.log_in(key.parent),
        "IMAGE_REGISTRY": f"{registry.address}/{FOLDER}",
        "RELEASE_KEY": str(key),
    }
    folder = key.parent / "release"
    command = [sys.executable, "-m", "tools.release", "publish", "--variant=cpu", "--trial"]
    subprocess.run([*command, f"--folder={folder}"], cwd=ROOT, env=environment, check=True)
    listed = json.loads((folder / "release.json").read_text())["artifacts"]
    return SignedRelease(registry, {each["name"]: each for each in listed}, folder / "release.pub")
