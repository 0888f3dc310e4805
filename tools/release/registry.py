"""The registry of a release, by crane, oras and Helm with the credentials of `docker login`."""

import subprocess
from pathlib import Path
from typing import Final

from tools.cluster.toolchain import CRANE, HELM, ORAS, program
from tools.images.errors import ImageError
from tools.images.tags import plain_http

PROGRAMS: Final = (CRANE, HELM, ORAS)


class Registry:
    """The registry and folder `prefix`, such as registry.example.com/finetune."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._plain_http = ("--plain-http",) if plain_http(prefix) else ()

    def digest(self, reference: str) -> str:
        """Digest of the manifest with this name."""
        return run("crane", "digest", reference)

    def tag(self, reference: str, tag: str) -> None:
        """Add a tag to a manifest."""
        run("crane", "tag", reference, tag)

    def push_chart(self, package: Path) -> None:
        """Push a packaged chart into the folder `charts`."""
        run("helm", "push", package, f"oci://{self.prefix}/charts", *self._plain_http)

    def attach(self, subject: str, document: Path, media_type: str, annotations: dict[str, str]) -> None:
        """Attach a document to a manifest, which clients find by the referrers API of the registry.

        Args:
            subject: name of the manifest with its digest.
            document: file.
            media_type: type of the document and of the attached artifact.
            annotations: annotations of the attached artifact.
        """
        options = [f"--annotation={name}={value}" for name, value in annotations.items()]
        run(
            "oras",
            "attach",
            *self._plain_http,
            f"--artifact-type={media_type}",
            *options,
            subject,
            f"{document.name}:{media_type}",
            folder=document.parent,
        )


def run(name: str, *arguments: str | Path, folder: Path | None = None) -> str:
    """Output of a program.

    Raises:
        ImageError: it failed; the message has its output.
    """
    done = subprocess.run(
        [program(name), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ImageError(f"{name} {arguments[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
