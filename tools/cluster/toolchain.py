# SPDX-License-Identifier: Apache-2.0
"""The programs of a cluster: one pinned Go module in programs/ for each tool."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory
from tools.cluster.errors import ClusterError
from tools.cluster.gomodules import pinned

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
