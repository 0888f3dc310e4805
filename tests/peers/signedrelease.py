"""A release in a registry on this machine, and the statements that a client finds there."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from tests.ociregistry import OciRegistry
from tools.bootstrap.uv import ROOT
from tools.cluster.toolchain import program

BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
FOLDER: Final = "finetune"
Document = dict[str, Any]


@dataclass(frozen=True)
class SignedRelease:
    """A release that `make release` pushed into `registry`, signed with the key of the file `public`."""

    registry: OciRegistry
    artifacts: dict[str, Document]
    public: Path

    @property
    def prefix(self) -> str:
        return f"{self.registry.address}/{FOLDER}"

    def bundles(self, name: str, folder: Path) -> list[Path]:
        """Fetch the bundles that refer to an artifact.

        The registry has no API for referrers; then their index has a tag that is made from the digest.
        """
        artifact = self.artifacts[name]
        repository = artifact["repository"].removeprefix(f"{self.registry.address}/")
        index = self._get(repository, "manifests", artifact["digest"].replace(":", "-")).json()
        found = []
        for number, each in enumerate(index["manifests"]):
            assert each["artifactType"] == BUNDLE
            (layer,) = self._get(repository, "manifests", each["digest"]).json()["layers"]
            assert layer["mediaType"] == BUNDLE
            file = folder / f"{name}-{number}.json"
            file.write_bytes(self._get(repository, "blobs", layer["digest"]).content)
            found.append(file)
        return found

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

    def _get(self, repository: str, kind: str, digest: str) -> httpx.Response:
        url = f"http://{self.registry.address}/v2/{repository}/{kind}/{digest}"
        return httpx.get(url, trust_env=False).raise_for_status()


def make_release(registry: OciRegistry, key: Path) -> SignedRelease:
    """Run the module of `make release` for the CPU variant."""
    environment = {
        **os.environ,
        "IMAGE_REGISTRY": f"{registry.address}/{FOLDER}",
        "NO_PROXY": registry.address.partition(":")[0],
        "RELEASE_KEY": str(key),
    }
    command = [sys.executable, "-m", "tools.release", "--variant=cpu", "--trial"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    listed = json.loads((ROOT / "build" / "release" / "release.json").read_text())["artifacts"]
    public = key.with_suffix(".pub")
    public.write_bytes((ROOT / "build" / "release" / "release.pub").read_bytes())
    return SignedRelease(registry, {each["name"]: each for each in listed}, public)
