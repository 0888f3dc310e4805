# SPDX-License-Identifier: Apache-2.0
"""The health of objects in Argo CD with our check, and their status in Flux and Helm, by kstatus."""

import json
import subprocess
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from hack.argocd import CHECK
from tests.integration.api import Object
from tools.cluster.toolchain import ARGO_HEALTH, KSTATUS, Tool, ensure, program

STATES: Final = {
    "Ready": ("Current", "Healthy"),
    "Suspended": ("Current", "Suspended"),
    "Reconciling": ("InProgress", "Progressing"),
    "Stalled": ("Failed", "Degraded"),
}
"""By condition: the status in kstatus and the health in Argo CD of an object in this state."""


def argo_health(objects: Iterable[Object], check: Path = CHECK) -> list[tuple[str, str]]:
    """Status and message of each object in Argo CD with this check."""
    return [(each["status"], each.get("message", "")) for each in _judge(ARGO_HEALTH, objects, check)]


def kstatus(objects: Iterable[Object]) -> list[str]:
    """Status of each object: Current, InProgress, Failed or Terminating."""
    return [each["status"] for each in _judge(KSTATUS, objects)]


def changes(verdicts: Iterable[str]) -> list[str]:
    """The verdicts without those that equal the one before."""
    return [verdict for verdict, _ in groupby(verdicts)]


def state(manifest: Object) -> str | None:
    """The object's condition among STATES."""
    conditions = manifest.get("status", {}).get("conditions", ())
    return next((each["type"] for each in conditions if each["type"] in STATES), None)


def _judge(tool: Tool, objects: Iterable[Object], *arguments: Path) -> list[Any]:
    ensure((tool,))
    text = "".join(json.dumps(each, default=str) + "\n" for each in objects)
    command = [program(tool.name), *arguments]
    judged = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stderr
    return [json.loads(line) for line in judged.stdout.splitlines()]
