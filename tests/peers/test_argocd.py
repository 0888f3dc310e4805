# SPDX-License-Identifier: Apache-2.0
"""Argo CD accepts our Applications, and our judge of health agrees with the cases of its own checks."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from tests.integration.api import Object
from tests.integration.judges import argo_health
from tools.cluster import ControlPlane
from tools.peers.toolchain import APPLICATION_DEFINITION, HEALTH_CHECKS

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "gitops" / "argocd"
WITHHELD: Final = re.compile(r"\b(string|math)\b|:(find|match|gsub|gmatch|lower|upper|sub|format|len)\(")
"""Libraries that Argo CD gives to its own checks and not to those of argocd-cm."""
MIN_CASES: Final = 900


def test_the_definition_of_argo_cd_accepts_the_applications() -> None:
    plane = ControlPlane(f"argocd-{os.getpid()}")
    with plane:
        plane.kubectl.define(APPLICATION_DEFINITION)
        plane.kubectl.run("create", "namespace", "argocd")
        for file in ("applications.yaml", "argocd-cm.yaml"):
            plane.kubectl.run("apply", "--server-side", "--validate=strict", f"--filename={EXAMPLE / file}")
        found = plane.kubectl.get("applications.argoproj.io", "--namespace=argocd")["items"]
    plane.purge()
    assert [each["metadata"]["name"] for each in found] == ["finetune-platform", "finetune-support"]


def cases() -> Iterator[tuple[Path, list[Object], list[Object]]]:
    """Each check of a single kind with the objects and the health of its cases."""
    for file in sorted(HEALTH_CHECKS.glob("*/*/health_test.yaml")):
        check = file.with_name("health.lua")
        if check.parent.name == "_" or WITHHELD.search(check.read_text()):
            continue
        found = [
            (document, case["healthStatus"])
            for case in yaml.safe_load(file.read_text())["tests"]
            if "inputPath" in case
            for document in documents(file.parent / case["inputPath"])
        ]
        yield check, [manifest for manifest, _ in found], [health for _, health in found]


def documents(file: Path) -> list[Object]:
    """The object in the file; empty if it has several, of which Argo CD's own test takes the last."""
    found = list(yaml.safe_load_all(file.read_text()))
    return found if len(found) == 1 else []


def test_the_judge_agrees_with_every_case_of_argo_cd_that_needs_no_withheld_library() -> None:
    judged = 0
    for check, manifests, expected in cases():
        health = argo_health(manifests, check)
        assert health == [(each["status"], each.get("message", "")) for each in expected], check
        judged += len(health)
    assert judged > MIN_CASES
