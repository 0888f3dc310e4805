# SPDX-License-Identifier: Apache-2.0
"""Objects that a GitOps tool applies from Git: it would undo a change that is made only in the cluster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import yaml

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_operator.api.meta import API_VERSION

FLUX_PAUSED: Final = ("kustomize.toolkit.fluxcd.io/reconcile", "disabled")
"""Annotation with which Flux leaves an object alone."""


@dataclass(frozen=True, slots=True)
class GitOwner:
    """What applies an object from Git, such as `Flux`, and its own object if the mark names one."""

    tool: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.tool} ({self.source})" if self.source else self.tool


def _flux(kind: str, group: str) -> Callable[[Mapping[str, str], Mapping[str, str]], GitOwner | None]:
    def owner(labels: Mapping[str, str], _: Mapping[str, str]) -> GitOwner | None:
        name, namespace = (labels.get(f"{group}.toolkit.fluxcd.io/{each}") for each in ("name", "namespace"))
        return GitOwner("Flux", f"{kind} {namespace}/{name}") if name else None

    return owner


def _argo(labels: Mapping[str, str], annotations: Mapping[str, str]) -> GitOwner | None:
    application = annotations.get("argocd.argoproj.io/tracking-id", "").partition(":")[0]
    application = application or labels.get("argocd.argoproj.io/instance", "")
    return GitOwner("Argo CD", f"Application {application}") if application else None


MARKS: Final = (_flux("Kustomization", "kustomize"), _flux("HelmRelease", "helm"), _argo)
"""Each reads the labels and annotations that one tool puts on what it applies."""
MANAGERS: Final = {
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
}
"""Tools by the names of their field managers."""


def find_git_owner(obj: Object) -> GitOwner | None:
    """What applies this object, or a field of its spec, from Git; None if nothing does."""
    metadata = obj["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    name, value = FLUX_PAUSED
    found = next((owner for mark in MARKS if (owner := mark(labels, annotations)) is not None), None)
    found = found or _by_manager(metadata.get("managedFields") or ())
    return None if found and found.tool == "Flux" and annotations.get(name) == value else found


def _by_manager(entries: "list[Object] | tuple[Object, ...]") -> GitOwner | None:
    """The owner of a field of the spec; a tool that has set only a label decides nothing."""
    managers = (each.get("manager", "") for each in entries if "f:spec" in (each.get("fieldsV1") or {}))
    return next((GitOwner(MANAGERS[manager]) for manager in managers if manager in MANAGERS), None)


def refuse_if_git_owns(kind: str, obj: Object, spec: Object) -> None:
    """Refuse a change of the spec of an object that Git owns.

    Args:
        kind: kind of the object.
        obj: the object as the API server has it, with `metadata.managedFields`.
        spec: JSON merge patch of its spec.

    Raises:
        OperationError: Git owns it. The details are the change to commit; the exit code is OWNED_BY_GIT.
    """
    owner = find_git_owner(obj)
    if owner is None:
        return
    name, namespace = obj["metadata"]["name"], obj["metadata"].get("namespace", "")
    change = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
    commands = []
    if owner.tool == "Flux":
        commands = [
            "# Only in an emergency, before the same command again: Flux then ignores the object",
            f"kubectl -n {namespace} annotate {kind.lower()} {name} {'='.join(FLUX_PAUSED)}",
        ]
    raise OperationError(
        f"{kind} {name} is applied from Git by {owner}, which would undo this change."
        " Nothing was changed. Change these fields of its file, and commit:",
        commands,
        yaml.safe_dump(change, sort_keys=False, allow_unicode=True).splitlines(),
        ProgramExit.OWNED_BY_GIT,
    )
