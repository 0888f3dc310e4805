# SPDX-License-Identifier: Apache-2.0
"""The programs of a cluster: pinned Go modules in programs/, built once and kept in the cache by content."""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.commands import ClusterError, run

# The version that go.mod of every module requires.
_MIN_GO_VERSION: Final = (1, 26)


class GoMissingError(ClusterError):
    """There is no Go compiler that is new enough."""


def pinned(source: Path, module: str) -> str:
    """Version of a module in the go.mod of the folder `source`, such as v1.37.2.

    Raises:
        ClusterError: go.mod does not name the module.
    """
    text = (source / "go.mod").read_text()
    pin = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", text, re.MULTILINE)
    if pin is None:
        raise ClusterError(
            f"{source / 'go.mod'} does not pin a version of {module}: run `go get -tool` there"
        )
    return pin.group(1)


def download(source: Path, module: str) -> Path:
    """Read-only folder of a module that the folder `source` pins; its go.sum is checked.

    Raises:
        ClusterError: the Go compiler is missing, or the module could not be downloaded.
    """
    query = ("mod", "download", "-json", f"{module}@{pinned(source, module)}")
    return Path(json.loads(run([go_compiler(), "-C", str(source), *query]))["Dir"])


def go_compiler() -> str:
    """Path of `go` in PATH if it is new enough, otherwise in this Python environment.

    Raises:
        GoMissingError: neither has a suitable version.
    """
    for folder in (None, str(Path(sys.executable).parent)):
        found = shutil.which("go", path=folder)
        if found is not None and _go_version(found) >= _MIN_GO_VERSION:
            return found
    version = ".".join(str(part) for part in _MIN_GO_VERSION)
    raise GoMissingError(
        f"The build of programs from source needs Go {version} or newer: "
        "run this in the environment of `make .venv`, which has it"
    )


def _go_version(go: str) -> tuple[int, ...]:
    """Major and minor version; (0, 0) for a development build."""
    release = re.match(r"go(\d+)\.(\d+)", run([go, "env", "GOVERSION"]))
    return (0, 0) if release is None else (int(release[1]), int(release[2]))


_MODULES: Final = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Trimmed:
    """A module that is compiled without some of its folders.

    Attributes:
        module: its path.
        folder: folder of the tool's module that replaces it in go.mod, and may have files for those left out.
        left_out: folders of the module.
    """

    module: str
    folder: str
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A Go module whose `tool` directives name the programs to build.

    Attributes:
        name: folder in `modules`.
        programs: names of the built programs; empty if only `files` are needed.
        module: Go module of the programs; None for a program of this repository.
        version_variables: assignments of Go variables with the program's own version, where `{version}`,
            `{major}` and `{minor}` are those of `module` in go.mod.
        tags: Go build tags.
        files: folders of modules that are copied beside the programs, as (module, folder).
        trimmed: modules that are compiled in part.
        modules: folder of the tool's module.
    """

    name: str
    programs: tuple[str, ...]
    module: str | None = None
    version_variables: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    trimmed: tuple[Trimmed, ...] = ()
    modules: Path = _MODULES

    @property
    def source(self) -> Path:
        return self.modules / self.name

    @property
    def version(self) -> str:
        """Pinned version, such as v1.37.2; empty for a program of this repository."""
        return "" if self.module is None else pinned(self.source, self.module)

    @property
    def build_arguments(self) -> list[str]:
        """Arguments of `go build` without the output path."""
        flags = ["-s", "-w"]
        if self.version_variables:
            major, minor, _ = self.version.removeprefix("v").split(".", 2)
            for variable in self.version_variables:
                flags += ["-X", variable.format(version=self.version, major=major, minor=minor)]
        arguments = ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", " ".join(flags)]
        if self.tags:
            arguments += ["-tags", ",".join(self.tags)]
        return [*arguments, "tool" if self.module else "."]

    @property
    def key(self) -> str:
        """Hash of everything that determines the programs."""
        digest = hashlib.sha256("\0".join(self.build_arguments).encode())
        for choice in (*self.files, *self.trimmed):
            digest.update(repr(choice).encode() + b"\0")
        for path in sorted(path for path in self.source.rglob("*") if path.is_file()):
            digest.update(path.relative_to(self.source).as_posix().encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Folder of the built programs and of the copied files; complete or absent."""
        return cache_directory().absolute() / "bin" / f"{self.name}-{self.key}"

    def program(self, name: str) -> Path:
        """Full path of one of its programs, built or not."""
        return self.folder / name

    def is_built(self) -> bool:
        """Whether the cache has the programs and files of the present pins."""
        return self.folder.exists()


_KUBERNETES_VERSION: Final = "k8s.io/component-base/version"
KUBERNETES_MODULE: Final = "k8s.io/kubernetes"
KUBERNETES_VARIABLES: Final = (
    f"{_KUBERNETES_VERSION}.gitVersion={{version}}",
    f"{_KUBERNETES_VERSION}.gitMajor={{major}}",
    f"{_KUBERNETES_VERSION}.gitMinor={{minor}}",
)
KUBERNETES: Final = Tool(
    "kubernetes",
    ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"),
    module=KUBERNETES_MODULE,
    version_variables=KUBERNETES_VARIABLES,
)
ETCD: Final = Tool("etcd", ("etcd",), module="go.etcd.io/etcd/server/v3")
CONTAINERD: Final = Tool(
    "containerd",
    ("containerd", "containerd-shim-runc-v2", "ctr"),
    module="github.com/containerd/containerd/v2",
    version_variables=("github.com/containerd/containerd/v2/version.Version={version}",),
    tags=("no_btrfs",),
)
COREDNS: Final = Tool("coredns", ("coredns",), module="github.com/coredns/coredns")
"""Built only with the plugins of the cluster's Corefile: the rest takes most of the build time."""
HELM: Final = Tool(
    "helm",
    ("helm",),
    module="helm.sh/helm/v4",
    version_variables=("helm.sh/helm/v4/internal/version.version={version}",),
)
HELM3: Final = Tool(
    "helm3",
    ("helm3",),
    module="helm.sh/helm/v3",
    version_variables=("helm.sh/helm/v3/internal/version.version={version}",),
)
"""The Helm that many clusters still use; built by `make test-peers`."""
PAUSE: Final = Tool("pause", ("pause",))
VERSITYGW: Final = Tool("versitygw", ("versitygw",), module="github.com/versity/versitygw")
"""A real S3 server for a folder; not part of a cluster, and built by the tests that use it."""
CRANE: Final = Tool(
    "crane",
    ("crane",),
    module="github.com/google/go-containerregistry",
    version_variables=("github.com/google/go-containerregistry/cmd/crane/cmd.Version={version}",),
)
"""An OCI registry (`crane registry serve`) and its client, for tests and releases."""
ORAS: Final = Tool("oras", ("oras",), module="oras.land/oras")
"""Attaches documents to images, for `make release`."""
VERIFY_BUNDLE: Final = Tool("verify-bundle", ("verify-bundle",))
"""Verifies signatures of a release with Sigstore's library, for tests."""
PRIVATE_REGISTRY: Final = Tool("private-registry", ("private-registry",))
"""A registry with accounts and TLS, for tests of a release."""
ACTIONLINT: Final = Tool("actionlint", ("actionlint",), module="github.com/rhysd/actionlint")
"""Checks the workflows in .github, in `make verify`."""
KUBEFLOW_TRAINER: Final = Tool(
    "kubeflow-trainer", ("trainer-controller-manager", "jobset"), module="github.com/kubeflow/trainer/v2"
)
"""The peer of `make bench-operator`, with JobSet, on which it builds; not part of a cluster either."""
ARGO_HEALTH: Final = Tool("argo-health", ("argo-health",))
KSTATUS: Final = Tool("kstatus", ("kstatus",))
"""Judge the health of objects as Argo CD, and as Flux and Helm do; for tests."""

TOOLS: Final = (KUBERNETES, ETCD, CONTAINERD, COREDNS, HELM, PAUSE)
TEST_TOOLS: Final = (VERSITYGW, ARGO_HEALTH, KSTATUS, CRANE)
"""Programs of tests, which are not part of a cluster."""
OTHER_TOOLS: Final = (HELM3, ORAS, VERIFY_BUNDLE, PRIVATE_REGISTRY, ACTIONLINT, KUBEFLOW_TRAINER)
"""Programs that few commands need, and that are built when they are first used."""


def program(name: str) -> Path:
    """Full path of a built program, such as `kubectl` or `helm`.

    Raises:
        ValueError: no tool builds the program.
    """
    for tool in (*TOOLS, *TEST_TOOLS, *OTHER_TOOLS):
        if name in tool.programs:
            return tool.folder / name
    raise ValueError(f"no tool builds {name}")


def system_program(name: str, package: str) -> str:
    """Full path of a program of the distribution, found in PATH and in root's usual folders.

    Raises:
        ClusterError: the program is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise ClusterError(f"{name} is not installed: install the distribution package {package}")
    return found


LOG: Final = logging.getLogger(__name__)
_REPORT_SECONDS: Final = 15
_FAILURE_LINES: Final = 30


def ensure(tools: Sequence[Tool] = TOOLS) -> None:
    """Build the tools that are not in the cache, and log the progress.

    Raises:
        ClusterError: the Go compiler is missing, a module could not be downloaded, or a build failed; the
            message has the compiler's last lines.
    """
    missing = [tool for tool in tools if not tool.is_built()]
    if not missing:
        return
    go = go_compiler()
    parent = missing[0].folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [tool for tool in missing if not tool.is_built()]
        LOG.info("Building from Go modules (once): %s", ", ".join(tool.name for tool in missing))
        for tool in missing:
            _build(go, tool)


def _build(go: str, tool: Tool) -> None:
    started = time.monotonic()
    unfinished = tool.folder.with_name(f"{tool.folder.name}.part")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir()
    for module, folder in tool.files:
        _copy(download(tool.source, module) / folder, unfinished / folder)
    if tool.programs:
        with _source(tool) as source:
            _compile(go, tool, source, unfinished)
    unfinished.rename(tool.folder)
    LOG.info("  %s %s built in %.0f s", tool.name, tool.version, time.monotonic() - started)


def _compile(go: str, tool: Tool, source: Path, unfinished: Path) -> None:
    started = time.monotonic()
    output = unfinished / "output"
    # A module with one program may have another name for it. -v prints each package that is compiled.
    target = unfinished / tool.programs[0] if len(tool.programs) == 1 else f"{unfinished}/"
    command = [go, "build", "-v", "-o", target, *tool.build_arguments]
    # Less garbage collection saves a tenth of the time and costs memory that a build machine has.
    environment = {"GOGC": "400", **os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": ""}
    with (
        output.open("w") as log,
        subprocess.Popen(
            command,
            cwd=source,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        while process.poll() is None:
            try:
                process.wait(_REPORT_SECONDS)
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                LOG.info("  %s: %d packages compiled, %.0f s", tool.name, len(_lines(output)), seconds)
    missing = [name for name in tool.programs if not (unfinished / name).exists()]
    if process.returncode or missing:
        reason = f"missing: {', '.join(missing)}" if missing else f"exit status {process.returncode}"
        last = "\n".join(_lines(output)[-_FAILURE_LINES:])
        raise ClusterError(f"the build of {tool.name} in {tool.source} failed ({reason}):\n{last}")
    output.unlink()


@contextmanager
def _source(tool: Tool) -> Iterator[Path]:
    """Folder of the tool's module: that of the repository, or a copy with the trimmed modules."""
    if not tool.trimmed:
        yield tool.source
        return
    with TemporaryDirectory() as scratch:
        copy = Path(scratch, tool.name)
        shutil.copytree(tool.source, copy)
        for each in tool.trimmed:
            found = download(tool.source, each.module)
            _copy(found, copy / each.folder, partial(_is_compiled, each))
        yield copy


def _is_compiled(trimmed: Trimmed, path: Path) -> bool:
    is_source = path.name == "go.mod" or (path.suffix == ".go" and not path.stem.endswith("_test"))
    return is_source and not any(path.is_relative_to(folder) for folder in trimmed.left_out)


def _copy(source: Path, target: Path, chosen: Callable[[Path], bool] = lambda _: True) -> None:
    """Copy the chosen files, given by their paths in `source`, without its permissions: it is read-only."""
    for file in source.rglob("*"):
        path = file.relative_to(source)
        if file.is_file() and chosen(path):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / path)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()
