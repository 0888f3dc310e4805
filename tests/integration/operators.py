# SPDX-License-Identifier: Apache-2.0
"""Operator processes as in a cluster: `python -m finetune_operator` with an environment.

They are forked, except processes of the base release and those of `start_fresh`.
tests/trainer/test_signals.py tests signal handlers before the imports, which only a process that the
interpreter starts has.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx

from finetune_operator.runtime.process import main
from tests.baserelease import BaseRelease
from tests.forkserver import Forked, preload
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.layout import free_port

LEASE_SECONDS = 3
"""Short, so that a takeover is fast."""
IMAGE = "registry.example/trainer:1"
RELEASE_ENV = "PYTHONPATH"
"""Environment variable of an operator that must not be forked."""

preload(__name__)


def process_environment(name: str, kubeconfig: Path, http_port: int, report_port: int) -> dict[str, str]:
    """Environment of every operator process of the tests, without its settings."""
    return {
        "PATH": os.environ["PATH"],
        "KUBECONFIG": str(kubeconfig),
        "POD_NAME": name,
        "HTTP_PORT": str(http_port),
        "REPORT_PORT": str(report_port),
        "LOG_FORMAT": "text",
    }


class Operator:
    """One operator process."""

    def __init__(
        self,
        name: str,
        kubeconfig: Path,
        log: Path,
        environment: dict[str, str],
        python: Path = Path(sys.executable),
    ) -> None:
        self.name = name
        self.http_port = free_port()
        self.report_port = free_port()
        self._log = log
        variables = process_environment(name, kubeconfig, self.http_port, self.report_port) | environment
        self.process = (
            _start(python, variables, log) if RELEASE_ENV in variables else Forked(_operate, variables, log)
        )

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def status_of(self, probe: str) -> int:
        """HTTP status of /healthz or /readyz; 0 while the process does not listen."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.http_port}/{probe}", trust_env=False).status_code
        except httpx.TransportError:
            return 0

    def metric(self, line: str) -> float | None:
        """Value of a sample, given as in the text format; None if there is none."""
        return self.samples(line.partition("{")[0]).get(line)

    def samples(self, name: str) -> dict[str, float]:
        """Values of all samples of this metric, by sample in the text format."""
        text = httpx.get(f"http://127.0.0.1:{self.http_port}/metrics", trust_env=False).text
        rows = (row.rpartition(" ") for row in text.splitlines())
        return {line: float(value) for line, _, value in rows if line.partition("{")[0] == name}

    def is_active(self) -> bool:
        return self.status_of("readyz") == httpx.codes.OK and self.metric("finetune_active") == 1

    def wait_ready(self) -> "Operator":
        eventually(
            "the operator is ready", lambda: self.status_of("readyz") == 200, describe=lambda: self.log
        )
        return self

    def wait_active(self, seconds: float = 120) -> "Operator":
        eventually("the operator is active", self.is_active, seconds, lambda: self.log)
        return self

    def terminate(self) -> int:
        """Send SIGTERM, as the kubelet does, and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def wait(self) -> None:
        """Wait until the process has ended."""
        self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _start(python: Path, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [python, "-m", "finetune_operator"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _operate(environment: dict[str, str], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    main()


class Operators:
    """Starts operator processes with one user, one Lease and one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.user = f"operator-{namespace}"
        self._kubeconfig = control_plane.client(self.user)
        self._namespace = namespace
        self._folder = folder
        self._started: list[Operator] = []

    def start(self, name: str = "operator-0", **environment: str) -> Operator:
        """Start a process; the name of an earlier process means a restarted pod."""
        return self._begin(name, environment)

    def start_base(self, base: BaseRelease, name: str) -> Operator:
        """As `start`, with the operator and the packages of the base release."""
        return self._begin(name, base.environment, base.python)

    def _begin(
        self, name: str, environment: Mapping[str, str], python: Path = Path(sys.executable)
    ) -> Operator:
        settings = {
            "POD_NAMESPACE": self._namespace,
            "WATCH_NAMESPACES": self._namespace,
            "TRAINER_IMAGE": IMAGE,
            "LEASE_DURATION_SECONDS": str(LEASE_SECONDS),
            **environment,
        }
        operator = Operator(name, self._kubeconfig, self._folder / f"{name}.log", settings, python)
        self._started.append(operator)
        return operator

    def start_fresh(self) -> Operator:
        """Start a process with the interpreter instead of a fork."""
        return self.start(**{RELEASE_ENV: ""})

    def stop_all(self) -> None:
        for operator in self._started:
            operator.kill()
