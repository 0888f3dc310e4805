# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes without a node: API server, etcd and controllers on their own ports."""

import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from tools.cluster import control_plane_commands, network, toolchain
from tools.cluster.commands import ClusterError, until
from tools.cluster.control_plane_commands import PORTS, ApiEndpoint
from tools.cluster.credentials import create_client, create_credentials
from tools.cluster.kubectl import Kubectl
from tools.cluster.layout import LOOPBACK, Layout, choose_ports, exclusive, render
from tools.cluster.processes import Processes, send
from tools.cluster.teardown import tear_down
from tools.cluster.toolchain import ETCD, KUBERNETES, Tool

LOG: Final = logging.getLogger(__name__)
_STOP_SECONDS: Final = 30


class ControlPlane:
    """etcd, API server and controller manager on loopback; no pod runs.

    As a context manager it starts empty and ends with the block, or with the process that started it. Started
    with `up`, it outlives the process until `down`.
    """

    tools: tuple[Tool, ...] = (KUBERNETES, ETCD)
    address: IPv4Address = LOOPBACK
    fixed_ports: ClassVar[dict[str, int]] = {}
    has_node: bool = False
    controllers: ClassVar[tuple[str, ...]] = ("kube-controller-manager",)
    """Processes that elect a leader with a Lease in production."""
    agents: ClassVar[tuple[str, ...]] = ()
    """Processes of the node that follow the API server."""

    def __init__(self, name: str = "integration", kubernetes: Tool = KUBERNETES) -> None:
        """Use the files of the cluster `name`.

        Args:
            name: name of the cluster.
            kubernetes: API server and controllers.

        Raises:
            ClusterError: the name is not valid.
        """
        self.layout = Layout.of(name)
        self._kubernetes = kubernetes
        self._processes = Processes(self.layout.run, self.layout.log)
        self._block = ExitStack()

    def __enter__(self) -> Self:
        self._processes = Processes(self.layout.run, self.layout.log, die_with_parent=True)
        self._ensure_programs()
        with ExitStack() as stack:
            # Held to the end of the block: another process with this name waits and does not remove ours.
            stack.enter_context(exclusive(self.layout))
            stack.callback(tear_down, self.layout, self._processes)
            tear_down(self.layout, self._processes)
            self._start()
            self._wait_until_ready()
            self._block = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._block.close()

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.layout.kubeconfig

    @property
    def audit_log(self) -> Path:
        """File to which the API server writes one JSON event per request before it answers."""
        return self.layout.audit_log

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.kubeconfig)

    def client(self, name: str, *, administrator: bool = True) -> Path:
        """Kubeconfig of the user `name`, who appears under this name in audit events.

        An administrator has all rights; any other user has the rights of the roles bound to the name.

        Raises:
            ClusterError: the name is not valid, or the cluster does not run.
        """
        return create_client(self.layout, name, administrator=administrator)

    def up(self) -> None:
        """Start the cluster, or keep it with its objects if it runs with the same programs and options.

        Raises:
            ClusterError: it did not become ready; the message contains the log of the failed program.
        """
        self._ensure_programs()
        with exclusive(self.layout):
            problem = self._problem()
            if problem is None:
                self._keep_running()
            else:
                if self._processes.names():
                    LOG.info("Starting a new, empty cluster: %s", problem)
                tear_down(self.layout, self._processes)
                self._start()
            self._wait_until_ready()

    def down(self) -> None:
        """Stop the cluster, and remove all its files except logs and image store."""
        if self._is_present():
            with exclusive(self.layout):
                tear_down(self.layout, self._processes)

    def purge(self) -> None:
        """Stop the cluster, and remove all its files."""
        if self._is_present():
            with exclusive(self.layout):
                tear_down(self.layout, self._processes)
                shutil.rmtree(self.layout.state)

    def save(self) -> None:
        """Take a snapshot of etcd for `restore`; etcd is stopped meanwhile.

        Raises:
            ClusterError: the API server did not become ready again.
        """
        commands = self._running_commands()
        self._processes.stop(["etcd"], signal.SIGTERM, _STOP_SECONDS)
        shutil.rmtree(self.layout.etcd_snapshot, ignore_errors=True)
        shutil.copytree(self.layout.etcd, self.layout.etcd_snapshot)
        self._start_process("etcd", commands)
        self._wait_for_api_server()

    def restore(self) -> None:
        """Restore the snapshot, as after a loss of etcd's disk.

        The clients of the API server are restarted, as Kubernetes' documentation requires, because the state
        in their caches no longer exists.

        Raises:
            ClusterError: the API server did not become ready again.
        """
        commands = self._running_commands()
        for name in (*self.agents, *self.controllers, "kube-apiserver", "etcd"):
            self._processes.stop([name], signal.SIGKILL, _STOP_SECONDS)
        shutil.rmtree(self.layout.etcd)
        shutil.copytree(self.layout.etcd_snapshot, self.layout.etcd)
        self._start_processes(commands)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the API server during the block: it accepts connections and does not answer.

        The controllers are stopped before and started after the block. With leader election they end by
        themselves when they cannot renew their Lease. A controller that continued would consider the node
        lost.

        Raises:
            ClusterError: the API server did not become ready again.
        """
        commands = self._running_commands()
        api_server = self._processes.pid("kube-apiserver")
        if api_server is None:
            raise ClusterError("the API server does not run")
        self._processes.stop(self.controllers, signal.SIGTERM, _STOP_SECONDS)
        send(api_server, signal.SIGSTOP)
        try:
            yield
        finally:
            send(api_server, signal.SIGCONT)
            self._wait_for_api_server()
            for name in self.controllers:
                self._start_process(name, commands)

    def _ensure_programs(self) -> None:
        toolchain.ensure(tuple(dict.fromkeys((*self.tools, self._kubernetes))))

    def _running_commands(self) -> dict[str, list[str]]:
        return self._commands(json.loads(self._ports_record.read_text()))

    def _is_present(self) -> bool:
        """Whether there is anything to remove; detects a node even if its files were deleted."""
        return self.layout.state.exists() or self.layout.host_record.exists() or network.exists(self.layout)

    def _commands(self, chosen: dict[str, int]) -> dict[str, list[str]]:
        """Command line of every process; a cluster with other command lines is not kept."""
        return {
            "etcd": control_plane_commands.etcd(self.layout, chosen),
            "kube-apiserver": control_plane_commands.api_server(
                self.layout,
                chosen,
                self._endpoint(chosen),
                node=self.has_node,
                kubernetes=self._kubernetes,
            ),
            "kube-controller-manager": control_plane_commands.controller_manager(
                self.layout, chosen, self._kubernetes
            ),
        }

    def _endpoint(self, chosen: dict[str, int]) -> ApiEndpoint:
        return ApiEndpoint(self.address, chosen["kube-apiserver"])

    @property
    def _ports_record(self) -> Path:
        return self.layout.run / "ports.json"

    def _problem(self) -> str | None:
        """Reason why the running cluster cannot be kept; None if it can."""
        if not self._ports_record.exists():
            return "no process runs"
        expected = self._commands(json.loads(self._ports_record.read_text()))
        for name, command in expected.items():
            if self._processes.pid(name) is None:
                return f"{name} has ended (see {self._processes.log_file(name)})"
            if not self._processes.runs(name, command):
                return f"{name} runs with other options or another version"
        unexpected = set(self._processes.names()) - set(expected) - self._restartable()
        return f"{', '.join(sorted(unexpected))} should not run" if unexpected else None

    def _restartable(self) -> set[str]:
        """Processes that can be restarted in a cluster that is kept."""
        return set()

    def _keep_running(self) -> None:
        """Restart the restartable processes that have ended."""

    def _prepare(self) -> dict[str, int]:
        """Create folders, certificates and configuration of the control plane; returns the ports."""
        layout = self.layout
        if layout.log.exists():
            previous = layout.state / "log.previous"
            if previous.exists():
                shutil.rmtree(previous)
            layout.log.rename(previous)
        for folder in (layout.run, layout.log, layout.config, layout.etcd):
            folder.mkdir(parents=True, exist_ok=True)
        layout.etcd.chmod(0o700)
        chosen = choose_ports(PORTS, self.fixed_ports, self._ports_record)
        create_credentials(layout, self._endpoint(chosen))
        (layout.config / "audit-policy.yaml").write_text(render("audit-policy.yaml"))
        return chosen

    def _start(self) -> None:
        self._start_processes(self._commands(self._prepare()))

    def _start_processes(self, commands: dict[str, list[str]]) -> None:
        for name in ("etcd", "kube-apiserver"):
            self._start_process(name, commands)
        self._wait_for_api_server()
        for name in (*self.controllers, *self.agents):
            self._start_process(name, commands)

    def _start_process(self, name: str, commands: dict[str, list[str]]) -> None:
        self._processes.start(name, commands[name])

    def _wait_for_api_server(self) -> None:
        self._wait("the API server", lambda: self.kubectl.succeeds("get", "--raw", "/readyz"), seconds=90)
        LOG.info("API server is ready")

    def _wait_until_ready(self) -> None:
        self._wait(
            "the service account of the namespace default",
            lambda: self.kubectl.succeeds("--namespace=default", "get", "serviceaccount", "default"),
            seconds=60,
        )
        LOG.info("Controllers are ready")

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait for `condition`; fail at once with the process's log if a process ends meanwhile."""

        def holds() -> bool:
            for name in self._processes.names():
                if self._processes.pid(name) is None:
                    raise ClusterError(
                        f"{name} ended during the wait for {what}; {self._processes.log_tail(name)}"
                    )
            return condition()

        try:
            until(what, holds, seconds)
        except ClusterError as error:
            raise ClusterError(f"{error}\n(logs: {self.layout.log})") from error
