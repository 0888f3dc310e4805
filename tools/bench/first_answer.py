# SPDX-License-Identifier: Apache-2.0
"""`make bench-first-answer`: from a CSV to the first answer of a model that was trained on it.

Three ways with the same rows, base model and gate: `finetune run` on this machine, `finetune run --cluster`,
and kubectl. Counted are the commands that a person types and the lines of YAML that a person writes.
"""

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from rich.console import Console

from finetune_client.errors import OperationError
from tools.bench.page import PAGE, BenchError, Sheet, put
from tools.bootstrap.uv import ROOT
from tools.demo.admin_access import NAMESPACE, AdminAccess, prepare_namespace
from tools.demo.install import PROFILE, TWO_THREADS, copy_model, images, install
from tools.tryout import MODEL, QUESTION, SERVING, base_model

BEGIN: Final = "<!-- Written by make bench-first-answer from here -->"
EXAMPLE: Final = ROOT / "examples" / "ticket-routing"
ROWS: Final = "tickets.csv"
NAME: Final = "tickets"
RUN: Final = f"finetune run {ROWS} --model pvc://models/{MODEL} --gate 'exact_match >= 0.8'"
ON_THIS_MACHINE: Final = (
    f"{RUN} --claim models=models",
    f"finetune chat {NAME} '{QUESTION}' --local .finetune",
)
IN_A_CLUSTER: Final = (
    f"{RUN} --cluster -n {NAMESPACE}",
    f"finetune chat {NAME} '{QUESTION}' -n {NAMESPACE}",
)
WITH_KUBECTL: Final = (
    f"kubectl -n {NAMESPACE} create configmap {NAME} --from-file={ROWS}",
    f"kubectl -n {NAMESPACE} apply -f {NAME}.yaml",
    f"kubectl -n {NAMESPACE} wait --for=condition=Ready finetunejob/{NAME} --timeout=1h",
    f"kubectl -n {NAMESPACE} wait --for=condition=Ready inferencedeployment/{NAME} --timeout=10m",
    f"kubectl -n {NAMESPACE} port-forward service/{NAME} $PORT:80 >/dev/null &",
    "curl --silent --fail --retry 10 --retry-connrefused http://127.0.0.1:$PORT/v1/chat/completions"
    " --header 'Content-Type: application/json' --data '"
    + json.dumps({"model": NAME, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0})
    + "'",
)


@dataclass(frozen=True, slots=True)
class Way:
    """One way from the rows to the first answer.

    Attributes:
        yaml_lines: lines that a person writes, without comments.
        seconds: from the first command to the answer.
    """

    name: str
    commands: int
    yaml_lines: int
    seconds: float


def main() -> int:
    console = Console()
    try:
        access = AdminAccess.from_environment()
        with TemporaryDirectory() as folder:
            ways = list(_measure(access, Path(folder), console))
    except (BenchError, OperationError) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    sheet = Sheet(
        "From a CSV with 252 rows to the first answer of Gemma 3 270M",
        ("", "commands", "lines of YAML", "min:s"),
        tuple(
            (
                way.name,
                str(way.commands),
                str(way.yaml_lines),
                f"{way.seconds // 60:.0f}:{way.seconds % 60:02.0f}",
            )
            for way in ways
        ),
    )
    console.print(sheet.to_terminal())
    put(PAGE, BEGIN, [sheet], "operator, trainer and program of this commit, on CPUs")
    return 0


def _measure(access: AdminAccess, folder: Path, console: Console) -> Iterator[Way]:
    _write_rows(folder / ROWS)
    shutil.copytree(base_model(ROOT / "build" / "try"), folder / "models", copy_function=os.link)
    environment = _environment(access, folder)

    started = time.monotonic()
    console.print(f"$ {ON_THIS_MACHINE[0]}")
    with _until_serving(ON_THIS_MACHINE[0], folder, environment):
        _run(ON_THIS_MACHINE[1:], folder, environment, console)
        yield Way("`finetune run`, on this machine", len(ON_THIS_MACHINE), 0, time.monotonic() - started)
    (folder / f"{NAME}.yaml").unlink()

    refs = images()
    install(access, refs, defaultProfile={"spec": {**PROFILE, "pods": [*PROFILE["pods"], TWO_THREADS]}})
    _prepare(access, refs.operator, console)
    seconds = _run(IN_A_CLUSTER, folder, environment, console)
    yield Way("`finetune run --cluster`", len(IN_A_CLUSTER), 0, seconds)

    manifest = folder / f"{NAME}.yaml"
    manifest.write_text(re.sub(r"configmap://\S+/", f"configmap://{NAME}/", manifest.read_text()))
    lines = [line for line in manifest.read_text().splitlines() if line.strip() and not line.startswith("#")]
    _prepare(access, refs.operator, console)
    seconds = _run(WITH_KUBECTL, folder, environment, console)
    yield Way("`kubectl` and YAML", len(WITH_KUBECTL), len(lines), seconds)
    prepare_namespace(access)


def _write_rows(file: Path) -> None:
    """The rows of the example as a person has them: a CSV with names of its own."""
    with file.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("message", "team"))
        for line in (EXAMPLE / "data" / "tickets.jsonl").read_text().splitlines():
            row = json.loads(line)
            table.writerow((row["prompt"], row["completion"]))


def _prepare(access: AdminAccess, image: str, console: Console) -> None:
    """An empty namespace with a store and the base model, which a platform team has made before."""
    prepare_namespace(access)
    access.kubectl("apply", f"--namespace={NAMESPACE}", f"--filename={EXAMPLE / 'pvc.yaml'}")
    copy_model(access, image, console)


def _environment(access: AdminAccess, folder: Path) -> dict[str, str]:
    """Variables with which `finetune` and `kubectl` are on PATH and reach the cluster."""
    programs = folder / "bin"
    programs.mkdir()
    kubectl, *options = access.kubectl_command()
    for name, command in (
        ("finetune", [sys.executable, "-m", "finetune_client"]),
        ("kubectl", [shutil.which(kubectl) or kubectl, *options]),
    ):
        script = programs / name
        words = " ".join(f"'{word}'" for word in command)
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        script.chmod(0o755)
    kubeconfig = [each.removeprefix("--kubeconfig=") for each in options if each.startswith("--kubeconfig=")]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    selected = {"KUBECONFIG": kubeconfig[0]} if kubeconfig else {}
    return {**os.environ, **selected, "PATH": path, "PORT": str(port), "PYTHONUNBUFFERED": "1"}


def _run(commands: Sequence[str], folder: Path, environment: dict[str, str], console: Console) -> float:
    """Run commands in one shell, which ends what they left in the background. Returns the seconds.

    Raises:
        BenchError: one failed.
    """
    for command in commands:
        console.print(f"$ {command}", markup=False, soft_wrap=True)
    started = time.monotonic()
    script = "set -eu; trap 'jobs -p | xargs -r kill' EXIT\n" + "\n".join(commands)
    result = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, check=False)
    if result.returncode:
        raise BenchError(f"a command of {commands[0]} … failed with {result.returncode}")
    print(flush=True)
    return time.monotonic() - started


@contextmanager
def _until_serving(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a program whose endpoint serves during the block, as in another terminal.

    Raises:
        BenchError: it ended without an endpoint.
    """
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = process.stdout or iter(())
        for line in lines:
            print(line, end="", flush=True)
            if SERVING.search(line):
                break
        else:
            raise BenchError(f"{command} ended with {process.wait()}")
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            for line in lines:
                print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
