# SPDX-License-Identifier: Apache-2.0
"""Objects of the charts and of the operator, by the schemas and the CEL of older versions of Kubernetes."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.meta import GROUP
from finetune_operator.plan import Manifest
from tests import rights
from tests.integration.rules import files
from tests.mergepatch import merged
from tests.peers import clientschemas
from tests.unit.operator.goldencases import CASES, GOLDEN, Case, load
from tests.unit.operator.test_reconcile_golden import planned
from tools.peers import old_kubernetes
from tools.peers.toolchain import CEL_CHECK

ROOT: Final = Path(__file__).parents[2]
VERSIONS: Final = tuple(old_kubernetes.pins())
EVERYTHING: Final = (
    "replicas=2",
    "networkPolicies.operator=true",
    "watchNamespaces={team-a,team-b}",
    "gatewayAPI.enabled=true",
    "kueue.enabled=true",
    "dashboard.enabled=true",
)
"""Values of the chart with objects and rights that it does not have by default."""
ADDED: Final = {
    "1.31": {
        "Deployment: spec.template.spec.volumes[].image",
        "Job: spec.template.spec.containers[].resources.claims[].request",
        "Job: spec.template.spec.resourceClaims[].resourceClaimName",
        "Job: spec.template.spec.resourceClaims[].resourceClaimTemplateName",
    }
}
"""By version: fields that it added, of `serving.modelCache.images` and `resourceClaims` of profiles."""

pytestmark = pytest.mark.skipif(
    not old_kubernetes.is_installed(), reason="make test-peers installs the schemas"
)
by_version = pytest.mark.parametrize("version", VERSIONS)


def shaped(case: Case) -> Case:
    """The case with profiles that add to pods whatever a profile can add."""
    templates, images = (each["spec"] for each in files.complete(KINDS_BY_NAME["ComputeProfile"]))
    spec = {"pods": templates["pods"], "serving": {"modelCache": images["serving"]["modelCache"]}}
    objects = (
        merged(each, {"spec": spec}) if each["kind"] == "ComputeProfile" else each for each in case.objects
    )
    return dataclasses.replace(case, objects=tuple(objects))


@cache
def usual() -> tuple[Manifest, ...]:
    """Objects of Kubernetes' own kinds in both charts and in all golden plans."""
    charts = [*rights.rendered("system"), *rights.rendered("system", *EVERYTHING), *definitions()]
    return _of_kubernetes([*charts, *(each for case in _cases() for each in _made(case))])


@cache
def extended() -> tuple[Manifest, ...]:
    """Objects of the golden plans with profiles that add whatever they can."""
    return _of_kubernetes([each for case in _cases() for each in _made(shaped(case))])


def _cases() -> list[Case]:
    return [load(GOLDEN / "input" / f"{case}.yaml") for case in CASES]


def _made(case: Case) -> list[Manifest]:
    plan = planned(case)
    return [*(create.manifest for create in plan.create), *(apply.manifest for apply in plan.apply)]


def _of_kubernetes(manifests: list[Manifest]) -> tuple[Manifest, ...]:
    others = (GROUP, "gateway.networking.k8s.io", "kueue.x-k8s.io")
    return tuple(each for each in manifests if each["apiVersion"].rpartition("/")[0] not in others)


def definitions() -> list[Manifest]:
    return [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").iterdir())]


def policies() -> list[Manifest]:
    kinds = ("ValidatingAdmissionPolicy", "MutatingAdmissionPolicy")
    return [each for each in rights.rendered("system") if each["kind"] in kinds]


def unknown(folder: Path | None, manifests: tuple[Manifest, ...]) -> set[str]:
    """Fields of the manifests that a version does not know: kind and path."""
    environment = os.environ | ({} if folder is None else {"PYTHONPATH": str(folder)})
    answers = judge([sys.executable, clientschemas.__file__], manifests, environment)
    return {
        f"{manifest['kind']}: {field}"
        for manifest, found in zip(manifests, answers, strict=True)
        for field in found
    }


def judge(command: list[Any], manifests: Any, environment: Any = None) -> Iterator[Any]:
    text = "".join(json.dumps(each, default=str) + "\n" for each in manifests)
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return map(json.loads, done.stdout.splitlines())


def number(version: str) -> int:
    return int(version.partition(".")[2])


@by_version
def test_the_version_knows_every_field_except_documented_ones_of_profiles(version: str) -> None:
    client = old_kubernetes.client(version)
    assert unknown(client, usual()) == set()
    later = [fields for since, fields in ADDED.items() if number(version) < number(since)]
    assert unknown(client, extended()) == set().union(*later)


def test_the_objects_are_of_the_kinds_that_the_operator_and_the_charts_make() -> None:
    assert {each["kind"] for each in usual()} >= {
        "Deployment",
        "Job",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "CustomResourceDefinition",
        "ValidatingAdmissionPolicy",
    }


def test_a_field_a_type_and_a_kind_that_a_version_does_not_have_are_named() -> None:
    pod: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "spec": {"containers": [{"name": 1, "image": "a", "imagination": "b"}], "priority": "high"},
    }
    other = {"apiVersion": "batch/v1", "kind": "Pod"}
    assert unknown(None, (pod, {**other, "kind": "Oracle"})) == {
        "Pod: spec.containers[].imagination",
        "Pod: spec.containers[].name is not a value of type str",
        "Pod: spec.priority is not a value of type int",
        "Oracle: kind",
    }


@by_version
def test_the_rules_of_definitions_and_policies_are_valid_there(version: str) -> None:
    manifests = [*definitions(), *policies()]
    verdicts = {
        each["name"]: each["errors"] for each in judge([CEL_CHECK.program("cel-check"), version], manifests)
    }
    assert verdicts == {each["metadata"]["name"]: [] for each in manifests}


def test_a_rule_with_a_function_of_a_later_version_is_refused() -> None:
    (policy,) = [each for each in policies() if each["metadata"]["name"].endswith("-approval")]
    later = merged(policy, {"spec": {"validations": [{"expression": "isIP('10.0.0.1')"}]}})
    definition = definitions()[0]
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["x-kubernetes-validations"] = [{"rule": "isIP('10.0.0.1')"}]
    for version, is_known in (("1.30", False), ("1.31", True)):
        for found in judge([CEL_CHECK.program("cel-check"), version], [later, definition]):
            assert (found["errors"] == []) == is_known, found
            assert is_known or "undeclared reference to 'isIP'" in found["errors"][0]
