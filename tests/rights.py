"""What the chart grants the operator, and what the API server's audit log says that it used."""

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from tools.cluster import program
from tools.cluster.audit import AuditLog
from tools.cluster.binaries import ensure
from tools.cluster.toolchain import HELM

CHART = Path(__file__).parents[1] / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
NAMESPACES, CLUSTER, OWN = RELEASE, f"{RELEASE}-cluster", f"{RELEASE}-own"
"""The chart's roles: in each watched namespace, outside of namespaces, and in the operator's own."""

UNOBSERVABLE: Final = frozenset(
    {
        *(f"update {kind}/finalizers" for kind in ("datasets", "finetunejobs", "inferencedeployments")),
        "create endpointslices",
        "create networkpolicies",
        "create poddisruptionbudgets",
    }
)
"""Rights that the API server looks for while it answers another request, so that no line names them."""

RARELY_USED: Final = frozenset(
    {
        # A name that is taken, a write that came too late, a pod that is newer than the cache.
        "get computeprofiles",
        "get deployments",
        "get pods",
        "get services",
        # Endpoints with several replicas, or with a NetworkPolicy of their own.
        "get networkpolicies",
        "patch networkpolicies",
        "delete networkpolicies",
        "get poddisruptionbudgets",
        "patch poddisruptionbudgets",
        "delete poddisruptionbudgets",
    }
)
"""Rights that a suite may do without; tests/integration/test_rights.py shows what each is there for."""

SHADOWED: Final = {OWN: frozenset({"create secrets"})}
"""Rights that NAMESPACES grants as well where the operator watches all namespaces, as it does here."""

ROLE = re.compile(r'of (?:Cluster)?Role "([^"]+)"')

Object = dict[str, Any]


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource by one of the chart's roles; `names`: of the only objects it holds for."""

    role: str
    group: str
    resource: str
    verb: str
    names: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"

    def rule(self) -> Object:
        """As a rule of its own."""
        rule: Object = {"apiGroups": [self.group], "resources": [self.resource], "verbs": [self.verb]}
        return rule | ({"resourceNames": list(self.names)} if self.names else {})


def rendered(namespace: str) -> list[Object]:
    """The chart's manifests with its default values."""
    ensure((HELM,))
    command = [str(program("helm")), "template", RELEASE, str(CHART), f"--namespace={namespace}"]
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
    """What one user asked of the API server: by which right, and what was refused."""

    used: frozenset[Right]
    refused: frozenset[str]

    def __or__(self, other: "RightsUsage") -> "RightsUsage":
        return RightsUsage(self.used | other.used, self.refused | other.refused)


def usage(audit_log: Path, mark: int, user: str) -> RightsUsage:
    """Requests of the user after the mark that one of the chart's roles allowed, or that none did.

    What the roles of every user allow, such as discovery, is left out.
    """
    used, refused = set(), set()
    for event, _ in AuditLog(audit_log).events(mark):
        about = event.get("objectRef")
        if event["user"]["username"] != user or about is None:
            continue
        resource = "/".join(about[key] for key in ("resource", "subresource") if key in about)
        annotations = event.get("annotations", {})
        if annotations.get("authorization.k8s.io/decision") == "forbid":
            refused.add(f"{event['verb']} {resource} in {about.get('namespace', 'the cluster')}")
            continue
        role = ROLE.search(annotations.get("authorization.k8s.io/reason", ""))
        if role and role[1] in {NAMESPACES, CLUSTER, OWN}:
            used.add(Right(role[1], about.get("apiGroup", ""), resource, event["verb"]))
    return RightsUsage(frozenset(used), frozenset(refused))
