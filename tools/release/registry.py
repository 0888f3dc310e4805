# SPDX-License-Identifier: Apache-2.0
"""The registry of a release, by crane, oras and Helm with the credentials of `docker login`."""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import httpx

from tools.cluster.commands import until
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT
from tools.cluster.toolchain import CRANE, HELM, ORAS, VERIFY_BUNDLE, ensure, program
from tools.images.buildah import ImageError
from tools.images.tags import plain_http

PROGRAMS: Final = (CRANE, HELM, ORAS, VERIFY_BUNDLE)
UNKNOWN: Final = re.compile(
    r"^Error: .*(status code 404\b|\b(MANIFEST_UNKNOWN|NAME_UNKNOWN|NOT_FOUND):)", re.MULTILINE
)
"""In crane's message if the registry has no manifest of this name.

Lines before the error are about HEAD requests, whose answers do not count: crane repeats them with GET.
"""
ADVICE: Final = (
    (
        re.compile(r"x509: |tls: "),
        "the certificate of {host} is not trusted: add its CA to the system's, or set SSL_CERT_FILE to it",
    ),
    (
        re.compile(r"\b401\b|\bUNAUTHORIZED\b|basic credential not found"),
        "set REGISTRY_AUTH_FILE=$HOME/.docker/config.json, and run `buildah login {host}`",
    ),
    (
        re.compile(r"\b403\b|\bDENIED\b"),
        "this account of {host} may not pull and push there: log in as another, or correct IMAGE_REGISTRY",
    ),
    (
        re.compile(
            r"no such host|connection refused|network is unreachable|i/o timeout"
            r"|HTTP response to HTTPS client"
        ),
        "no registry with TLS answers at {host}: correct IMAGE_REGISTRY",
    ),
)
"""What to do about a message of a client."""


class Registry:
    """The registry and folder `prefix`, such as registry.example.com/finetune.

    All methods raise ImageError with the answer of the registry, and what to do about it.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.host = prefix.partition("/")[0]
        self._is_plain_http = bool(plain_http(prefix))
        self._plain_http = ("--plain-http",) if self._is_plain_http else ()

    def digest(self, reference: str) -> str | None:
        """Digest of the manifest with this name; None if the registry answers that it has none."""
        done = _start("crane", "digest", reference)
        if done.returncode and UNKNOWN.search(done.stderr):
            return None
        return _output(done, self.host)

    def tag(self, reference: str, tag: str) -> None:
        """Add a tag to a manifest."""
        self._run("crane", "tag", reference, tag)

    def push_chart(self, package: Path) -> None:
        """Push a packaged chart into the folder `charts`."""
        self._run("helm", "push", package, f"oci://{self.prefix}/charts", *self._plain_http)

    def copy(self, source: tuple[str, str], repository: str) -> None:
        """Copy a manifest and its content from this machine, without a tag.

        Args:
            source: option of oras for the place of the manifest, and its name with its digest.
            repository: name of the repository in this registry.
        """
        plain_http = ("--to-plain-http",) if self._is_plain_http else ()
        self._run("oras", "cp", *plain_http, *source, repository)

    def attach(self, subject: str, document: Path, media_type: str, annotations: dict[str, str]) -> None:
        """Attach a document to a manifest, which clients find by the referrers API of the registry.

        Args:
            subject: name of the manifest with its digest.
            document: file.
            media_type: type of the document and of the attached artifact.
            annotations: annotations of the attached artifact.
        """
        options = [f"--annotation={name}={value}" for name, value in annotations.items()]
        self._run(
            "oras",
            "attach",
            *self._plain_http,
            f"--artifact-type={media_type}",
            *options,
            subject,
            f"{document.name}:{media_type}",
            folder=document.parent,
        )

    def attached(self, subject: str, media_type: str) -> list[str]:
        """Text of all documents of a type that any program has attached to a manifest.

        Args:
            subject: name of the manifest with its digest.
            media_type: type of the attached artifacts.
        """
        kind = f"--artifact-type={media_type}"
        options = ("--format=json", "--depth=1", kind, *self._plain_http)
        found = json.loads(self._run("oras", "discover", *options, subject))
        repository = subject.partition("@")[0]
        documents = []
        for each in found["referrers"]:
            # `oras pull` leaves out the documents that cosign attaches: they have no file name.
            layers = json.loads(self._run("crane", "manifest", each["reference"]))["layers"]
            documents += [self._run("crane", "blob", f"{repository}@{layer['digest']}") for layer in layers]
        return documents

    def _run(self, name: str, *arguments: str | Path, folder: Path | None = None) -> str:
        return _output(_start(name, *arguments, folder=folder), self.host)


def run(name: str, *arguments: str | Path) -> str:
    """Output of a program.

    Raises:
        ImageError: it failed; the message has its output.
    """
    return _output(_start(name, *arguments))


def _start(name: str, *arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program(name), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def _output(done: subprocess.CompletedProcess[str], host: str = "") -> str:
    if done.returncode == 0:
        return done.stdout.strip()
    command = f"{Path(done.args[0]).name} {done.args[1]}"
    message = done.stderr.strip() or done.stdout.strip()
    found = (text.format(host=host) for pattern, text in ADVICE if host and pattern.search(message))
    advice = next(found, None)
    raise ImageError(f"{command} failed: {message}" + (f"\n{advice}" if advice else ""))


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
