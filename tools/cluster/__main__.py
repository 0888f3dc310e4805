# SPDX-License-Identifier: Apache-2.0
"""python -m tools.cluster: start, stop and inspect local clusters."""

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from tools.cluster import gateway_api, toolchain
from tools.cluster.cluster import TestCluster
from tools.cluster.commands import ClusterError
from tools.cluster.control_plane import ControlPlane
from tools.cluster.layout import DEFAULT_NAME, SECOND
from tools.cluster.linux_namespaces import isolated
from tools.cluster.processes import Processes, resident_bytes
from tools.cluster.toolchain import TEST_TOOLS, TOOLS

_MEBIBYTE = 1 << 20


def report(cluster: ControlPlane) -> None:
    """Print every process with its memory, then the nodes and pods."""
    processes = Processes(cluster.layout.run, cluster.layout.log)
    names = processes.names()
    if not names:
        print(f"The cluster {cluster.layout.name} does not run.")
        return
    for name in names:
        pid = processes.pid(name)
        if pid is None:
            print(f"{name:<24} has ended; see {processes.log_file(name)}")
        else:
            print(f"{name:<24} pid {pid:<8} {resident_bytes(pid) // _MEBIBYTE:>5} MiB")
    if processes.pid("kube-apiserver") is not None:
        print(cluster.kubectl.run("get", "nodes,pods", "--all-namespaces", "--output=wide"), end="")


app: Final = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
Name = Annotated[str, typer.Option(help="Name of the cluster.")]


@app.command()
def up(
    name: Name = DEFAULT_NAME,
    control_plane_only: Annotated[
        bool,
        typer.Option(
            "--control-plane-only", help="Start no node. Needs no root, and can run next to a full cluster."
        ),
    ] = False,
) -> None:
    """Start a cluster unless it runs."""
    cluster = ControlPlane(name) if control_plane_only else TestCluster(name)
    cluster.up()
    print(f"KUBECONFIG={cluster.kubeconfig}")


@app.command()
def down(name: Name = DEFAULT_NAME) -> None:
    """Stop a cluster, and keep its image store and logs."""
    TestCluster(name).down()


@app.command()
def purge(name: Name = DEFAULT_NAME) -> None:
    """Stop a cluster, and remove all its files."""
    TestCluster(name).purge()


@app.command()
def status(name: Name = DEFAULT_NAME) -> None:
    """Show processes, nodes and pods."""
    report(TestCluster(name))


@app.command()
def env(name: Name = DEFAULT_NAME) -> None:
    """Print shell code for kubectl, helm and ctr: eval "$(python -m tools.cluster env)"."""
    cluster = TestCluster(name)
    folders = dict.fromkeys(str(tool.folder) for tool in cluster.tools)
    variables = {"KUBECONFIG": str(cluster.kubeconfig), **cluster.containerd.environment}
    for variable, value in variables.items():
        print(f"export {variable}={shlex.quote(value)}")
    print(f"export PATH={shlex.quote(':'.join(folders))}:$PATH")


@app.command()
def client(user: str, name: Name = DEFAULT_NAME) -> None:
    """Write a kubeconfig for an administrator with this user name, and print its path."""
    print(TestCluster(name).client(user))


@app.command()
def load(archives: list[Path], name: Name = DEFAULT_NAME) -> None:
    """Import Docker or OCI image archives into the node's image store."""
    for archive in archives:
        TestCluster(name).load_archive(archive)


@app.command(name="isolated")
def run_isolated(command: list[str], name: Name = SECOND) -> None:
    """Run a command in namespaces where this cluster can run next to others: isolated -- COMMAND…"""
    line = isolated(command, name)
    os.execv(line[0], line)  # noqa: S606 - a shell would end before its command


@app.command(name="binaries")
def build_binaries() -> None:
    """Build the programs for clusters and tests that the cache does not have, and get the Gateway API."""
    toolchain.ensure((*TOOLS, *TEST_TOOLS))
    gateway_api.definitions()


class _Elapsed(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.relativeCreated / 1000:7.1f} s  {record.getMessage()}"


def main() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Elapsed())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        app()
    except ClusterError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
