"""The programs that a cluster is made of: one pinned Go module under programs/ for each."""

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
# What go.mod of every module asks for.
_MIN_GO_VERSION: Final = (1, 26)


@dataclass(frozen=True)
class Tool:
    """A Go module whose `tool` directives name the programs to build.

    `version_variables` are Go variables that hold the program's own version, `{version}`, `{major}` and
    `{minor}` being those of `module` in go.mod.
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
        """The pinned version, such as v1.37.2; empty for a program of this repository."""
        if self.module is None:
            return ""
        pin = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", self._go_mod, re.MULTILINE)
        if pin is None:
            raise ClusterError(
                f"{self.source / 'go.mod'} pins no version of {self.module}: run `go get -tool` there"
            )
        return pin.group(1)

    @property
    def _go_mod(self) -> str:
        return (self.source / "go.mod").read_text()

    @property
    def build_arguments(self) -> list[str]:
        """What `go build` is given, beside where to write."""
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
        """Changes whenever the programs would."""
        digest = hashlib.sha256("\0".join(self.build_arguments).encode())
        for path in sorted(self.source.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        """Where the built programs are."""
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
"""Of its plugins those that the cluster's Corefile names: the rest are most of what there is to compile."""
HELM: Final = Tool(
    "helm",
    ("helm",),
    module="helm.sh/helm/v4",
    version_variables=("helm.sh/helm/v4/internal/version.version={version}",),
)
PAUSE: Final = Tool("pause", ("pause",))
VERSITYGW: Final = Tool("versitygw", ("versitygw",), module="github.com/versity/versitygw")
"""A real S3 server over a folder; no part of a cluster, and built by the tests that use it."""
KUBEFLOW_TRAINER: Final = Tool(
    "kubeflow-trainer", ("trainer-controller-manager", "jobset"), module="github.com/kubeflow/trainer/v2"
)
"""The peer of `make bench-operator`, with JobSet, which it is built on; no part of a cluster either."""

TOOLS: Final = (KUBERNETES, ETCD, CONTAINERD, COREDNS, HELM, PAUSE)


def program(name: str) -> Path:
    """The full path of a program that was built, such as `kubectl` or `helm`."""
    for tool in (*TOOLS, VERSITYGW, KUBEFLOW_TRAINER):
        if name in tool.programs:
            return tool.folder / name
    raise ValueError(f"no tool builds {name}")


def system_program(name: str, package: str) -> str:
    """The full path of a program of the distribution; root's usual folders count even if PATH lacks them.

    Raises:
        ClusterError: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        raise ClusterError(f"{name} is not installed: install the distribution package {package}")
    return found


def go_compiler() -> str:
    """The `go` of PATH if it is new enough, or else the one of this Python environment.

    Raises:
        ClusterError: there is neither.
    """
    for folder in (None, str(Path(sys.executable).parent)):
        found = shutil.which("go", path=folder)
        if found is not None and _go_version(found) >= _MIN_GO_VERSION:
            return found
    oldest = ".".join(str(part) for part in _MIN_GO_VERSION)
    raise ClusterError(
        f"Go {oldest} or newer is needed to build Kubernetes: "
        "run this in the environment that `make .venv` makes, which has one"
    )


def _go_version(go: str) -> tuple[int, ...]:
    """Major and minor version; of a development build (0, 0)."""
    release = re.match(r"go(\d+)\.(\d+)", run([go, "env", "GOVERSION"]))
    return (0, 0) if release is None else (int(release[1]), int(release[2]))
