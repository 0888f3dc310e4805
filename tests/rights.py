# SPDX-License-Identifier: Apache-2.0
"""The rights that the chart grants to the operator, and those that it used according to the audit log."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tools.cluster import program
from tools.cluster.audit import AuditLog
from tools.cluster.toolchain import HELM, ensure

CHART = Path(__file__).parents[1] / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACES, CLUSTER, OWN = RELEASE, f"{RELEASE}-cluster", f"{RELEASE}-own"
"""The chart's roles: in each watched namespace, in the cluster, and in the operator's own namespace."""

UNOBSERVABLE: Final = frozenset(
    {
        *(
            f"update {kind}/finalizers"
            for kind in ("datasets", "evaluations", "finetunejobs", "inferencedeployments")
        ),
        "create endpointslices",
        "create networkpolicies",
        "create poddisruptionbudgets",
    }
)
"""Rights that the API server checks during another request, so that the audit log does not show them."""

RARELY_USED: Final = frozenset(
    {
        # For a name that exists, a conflicting write, or a pod that the cache does not have yet.
        "get computeprofiles",
        "get deployments",
        "get evaluations",
        "get finetuneschedules",
        "get finetunesweeps",
        "get pods",
        "get services",
        # For schedules and sweeps.
        "create finetunejobs",
        "patch finetuneschedules/status",
        "patch finetunesweeps/status",
        # For a Job that has had no pod for 10 seconds.
        "list events",
        # For endpoints with several replicas or with their own NetworkPolicy.
        "get networkpolicies",
        "patch networkpolicies",
        "delete networkpolicies",
        "get poddisruptionbudgets",
        "patch poddisruptionbudgets",
        "delete poddisruptionbudgets",
    }
)
"""Rights that a suite may not use; tests/integration/test_rights.py shows the purpose of each."""

SHADOWED: Final = {OWN: frozenset({"create secrets"})}
"""Rights that NAMESPACES also grants when the operator watches all namespaces, as in these tests."""

ROLE = re.compile(r'of (?:Cluster)?Role "([^"]+)"')

EVERYONE: Final = {f"{RELEASE}-profiles": CLUSTER}
"""The role of the operator with the rights of a role that every user has.

Of several roles that allow a request, the API server names any one in its audit log.
"""

Object = dict[str, Any]


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource, granted by one of the chart's roles.

    Attributes:
        role: name of the role.
        group: API group of the resource.
        resource: plural name of the resource.
        verb: the verb.
        names: names of the objects to which the right is restricted; empty for all objects.
    """

    role: str
    group: str
    resource: str
    verb: str
    names: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def rule(self) -> Object:
        """The right as a single rule of a role."""
        rule: Object = {"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb]}
        return rule | ({"resourceNames": list(self.names)} if self.names else {})


def rendered(namespace: str, *settings: str) -> list[Object]:
    """The chart's manifests with its default values, except for these settings."""
    ensure((HELM,))
    command = [str(program("helm")), "template", RELEASE, str(CHART), f"--namespace={namespace}"]
    command += [f"--set={setting}" for setting in settings]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def granted(manifests: Iterable[Object]) -> frozenset[Right]:
    """The rights of every role that is bound to the operator's service account."""
    manifests = list(manifests)
    bound = {
        manifest["roleRef"]["name"]
        for manifest in manifests
        if manifest["kind"] in {"ClusterRoleBinding", "RoleBinding"}
        and any(subject["name"] == RELEASE for subject in manifest["subjects"])
    }
    return frozenset(
        Right(manifest["metadata"]["name"], group, resource, verb, tuple(rule.get("resourceNames", ())))
        for manifest in manifests
        if manifest["kind"] in {"ClusterRole", "Role"} and manifest["metadata"]["name"] in bound
        for rule in manifest["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    )


@dataclass(frozen=True)
class RightsUsage:
    """The rights that one user used, and the refused requests."""

    used: frozenset[Right]
    refused: frozenset[str]

    def __or__(self, other: "RightsUsage") -> "RightsUsage":
        return RightsUsage(self.used | other.used, self.refused | other.refused)


def usage(audit_log: Path, mark: int, user: str) -> RightsUsage:
    """Rights of the chart's roles that the user used after the mark, and refused requests.

    Requests that the roles of every user allow, such as discovery, are not included.
    """
    used, refused = set(), set()
    for event, _ in AuditLog(audit_log).events(mark):
        target = event.get("objectRef")
        # A request that was not authenticated has no user name.
        if event["user"].get("username") != user or target is None:
            continue
        resource = "/".join(target[key] for key in ("resource", "subresource") if key in target)
        annotations = event.get("annotations", {})
        if annotations.get("authorization.k8s.io/decision") == "forbid":
            refused.add(f"{event['verb']} {resource} in {target.get('namespace', 'the cluster')}")
            continue
        if found := ROLE.search(annotations.get("authorization.k8s.io/reason", "")):
            role = EVERYONE.get(found[1], found[1])
            if role in {NAMESPACES, CLUSTER, OWN}:
                used.add(Right(role, target.get("apiGroup", ""), resource, event["verb"]))
    return RightsUsage(frozenset(used), frozenset(refused))
