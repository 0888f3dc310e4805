"""The programs of a cluster: one pinned Go module in programs/ for each tool."""

import hashlib
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.cluster.commands import run
from tools.cluster.errors import ClusterError

_MODULES: Final = Path(__file__).parent / "programs"
# The version that go.mod of every module requires.
_MIN_GO_VERSION: Final = (1, 26)


@dataclass(frozen=True)
class Tool:
    """A Go module whose `tool` directives name the programs to build.

    Attributes:
        name: folder in programs/.
        programs: names of the built programs.
        module: Go module of the programs; None for a program of this repository.
        version_variables: assignments of Go variables with the program's own version, where `{version}`,
            `{major}` and `{minor}` are those of `module` in go.mod.
        tags: Go build tags.
    """

    name: str
    programs: tuple[str, ...]
    module: str | None = None
    version_variables: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        return _MODULES / self.name

    @property
    def version(self) -> str:
        """Pinned version, such as v1.37.2; empty for a program of this repository."""
        if self.module is None:
            return ""
        pin = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", self._go_mod, re.MULTILINE)
        if pin is None:
            raise ClusterError(
                f"{self.source / 'go.mod'} does not pin a version of {self.module}: run `go get -tool` there"
            )
        return pin.group(1)

    @property
    def _go_mod(self) -> str:
        return (self.source / "go.mod").read_text()

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
        for path in sorted(self.source.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Folder of the built programs."""
        return cache_directory().absolute() / "bin" / f"{self.name}-{self.key}"


_KUBERNETES_VERSION: Final = "k8s.io/component-base/version"
KUBERNETES: Final = Tool(
    "kubernetes",
    ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet"),
    module="k8s.io/kubernetes",
    version_variables=(
        f"{_KUBERNETES_VERSION}.gitVersion={{version}}",
        f"{_KUBERNETES_VERSION}.gitMajor={{major}}",
        f"{_KUBERNETES_VERSION}.gitMinor={{minor}}",
    ),
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


def program(name: str) -> Path:
    """Full path of a built program, such as `kubectl` or `helm`.

    Raises:
        ValueError: no tool builds the program.
    """
    for tool in (*TOOLS, *TEST_TOOLS, HELM3, ORAS, VERIFY_BUNDLE, KUBEFLOW_TRAINER):
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


def go_compiler() -> str:
    """Path of `go` in PATH if it is new enough, otherwise in this Python environment.

    Raises:
        ClusterError: neither has a suitable version.
    """
    for folder in (None, str(Path(sys.executable).parent)):
        found = shutil.which("go", path=folder)
        if found is not None and _go_version(found) >= _MIN_GO_VERSION:
            return found
    version = ".".join(str(part) for part in _MIN_GO_VERSION)
    raise ClusterError(
        f"the build of Kubernetes needs Go {version} or newer: "
        "run this in the environment of `make .venv`, which has it"
    )


def _go_version(go: str) -> tuple[int, ...]:
    """Major and minor version; (0, 0) for a development build."""
    release = re.match(r"go(\d+)\.(\d+)", run([go, "env", "GOVERSION"]))
    return (0, 0) if release is None else (int(release[1]), int(release[2]))
