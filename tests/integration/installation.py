# SPDX-License-Identifier: Apache-2.0
"""The chart on a real API server, and the rights that it grants."""

import json
from typing import Final

from tests import rights
from tools.cluster import ControlPlane

SYSTEM: Final = "finetune-system"
OPERATOR: Final = f"system:serviceaccount:{SYSTEM}:finetune-operator"


def rendered() -> str:
    """The chart with its default values, as one manifest of kind List."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": rights.rendered(SYSTEM)})


def can(cluster: ControlPlane, user: str, verb: str, resource: str, namespace: str = "") -> bool:
    """Whether the user has a right, in one namespace or in all."""
    name, _, subresource = resource.partition("/")
    options = [f"--namespace={namespace}"] if namespace else ["--all-namespaces"]
    options += [f"--subresource={subresource}"] if subresource else []
    return cluster.kubectl.succeeds("auth", "can-i", verb, name, f"--as={user}", *options, "--quiet")
