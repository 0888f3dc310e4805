# SPDX-License-Identifier: Apache-2.0
"""References between the objects of the files: what they name is in the files, or must be in the cluster."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_client.offline.definitions import SCHEMAS
from finetune_client.offline.findings import Finding, Located, Path, Severity, join_field
from finetune_client.offline.manifests import WrittenObject
from finetune_client.offline.names import find_nearest
from finetune_client.offline.schema import is_ours

LINE: Final = "model line"


@dataclass(frozen=True, slots=True)
class _Reference:
    """Fields that name an object of a kind: of one kind, or of all with an empty `kind`."""

    kind: str
    field: str
    target: str


_REFERENCES: Final = (
    _Reference("FineTuneJob", "dataset.ref.name", "Dataset"),
    _Reference("FineTuneJob", "dataset.ref.version", "DatasetVersion"),
    _Reference("FineTuneJob", "evaluation.dataset.ref.name", "Dataset"),
    _Reference("FineTuneJob", "evaluation.dataset.ref.version", "DatasetVersion"),
    _Reference("FineTuneJob", "evaluation.profile", "ComputeProfile"),
    _Reference("FineTuneJob", "baseModel.checkpoint", "Checkpoint"),
    _Reference("FineTuneJob", "baseModel.champion.modelLine", LINE),
    _Reference("FineTuneJob", "compute.profile", "ComputeProfile"),
    _Reference("Evaluation", "checkpoints", "Checkpoint"),
    _Reference("Evaluation", "dataset.ref.name", "Dataset"),
    _Reference("Evaluation", "dataset.ref.version", "DatasetVersion"),
    _Reference("Evaluation", "profile", "ComputeProfile"),
    _Reference("InferenceDeployment", "models.follow.modelLine", LINE),
    _Reference("InferenceDeployment", "models.pin.checkpoint", "Checkpoint"),
    _Reference("InferenceDeployment", "compute.profile", "ComputeProfile"),
)
_OPEN: Final = re.compile(r"(?P<scheme>pvc|configmap)://(?P<name>[^/]+)")
_SUFFIXES: Final = {"SecretRef": "Secret", "configMapRef": "ConfigMap"}
"""Kinds by the ends of the names of fields that refer to them."""
_SCHEMES: Final = {"pvc": "PersistentVolumeClaim", "configmap": "ConfigMap"}


@dataclass(frozen=True, slots=True)
class _Use:
    """One place that names something.

    Attributes:
        target: kind of what is named.
        name: its name.
    """

    manifest: WrittenObject
    path: Path
    target: str
    name: str

    def finding(self, severity: Severity, message: str, advice: str = "") -> Located:
        field = join_field(self.path)
        return self.manifest.locate(Finding(severity, self.path, field, message, advice))


@dataclass(frozen=True, slots=True)
class _Target:
    """Something that can be named, with the object that makes it."""

    manifest: WrittenObject
    kind: str
    name: str

    @property
    def namespace(self) -> str:
        return "" if self.kind == "ComputeProfile" else self.manifest.namespace


def check_references(manifests: Sequence[WrittenObject]) -> Iterator[Located]:
    """Duplicate objects, references to what the files have under another name or namespace, and to what only
    the cluster can have.
    """
    yield from _find_duplicates(manifests)
    targets = [target for manifest in manifests for target in _targets(manifest)]
    in_cluster = set[tuple[str, str, str]]()
    for use in (use for manifest in manifests for use in _uses(manifest)):
        named = [each for each in targets if (each.kind, each.name) == (use.target, use.name)]
        if any(_is_reachable(use, each) for each in named):
            continue
        key = (use.target, use.manifest.namespace, use.name)
        if named:
            yield _other_namespace(use, named[0])
        elif near := _find_near(use, targets):
            yield use.finding(
                Severity.WARNING, f"the files have no {use.target} {use.name}", f"did you mean {near}?"
            )
        elif use.target == LINE and any(each.kind == LINE for each in targets):
            yield use.finding(
                Severity.WARNING,
                f"no run of the files writes model line {use.name}",
                f"they write {', '.join(sorted({each.name for each in targets if each.kind == LINE}))}",
            )
        elif key not in in_cluster:
            in_cluster.add(key)
            text = (
                f"no run of the files writes model line {use.name}: a run in the cluster must"
                if use.target == LINE
                else f"{use.target} {use.name} is not in the files: it must exist in the cluster"
            )
            yield use.finding(Severity.INFO, text)


def _find_duplicates(manifests: Sequence[WrittenObject]) -> Iterator[Located]:
    first: dict[tuple[str, str, str], WrittenObject] = {}
    for manifest in manifests:
        key = (manifest.kind, manifest.namespace, manifest.name)
        if manifest.kind not in SCHEMAS or not manifest.name:
            continue
        if key in first:
            place = f"{first[key].file}:{first[key].lines[()]}"
            text = f"{place} has an object of this kind and name, and the later one replaces it"
            path: Path = ("metadata", "name")
            finding = Finding(Severity.WARNING, path, join_field(path), text, "rename one of them")
            yield manifest.locate(finding)
        first.setdefault(key, manifest)


def _is_reachable(use: _Use, target: _Target) -> bool:
    return target.kind == "ComputeProfile" or target.namespace == use.manifest.namespace


def _other_namespace(use: _Use, target: _Target) -> Located:
    own, other = use.manifest.namespace, target.namespace
    where = f"in namespace {other}" if other else "without a namespace"
    here = f"this object is in namespace {own}" if own else "this object has no namespace"
    message = f"the files have {use.target} {use.name} {where}, and {here}"
    return use.finding(Severity.WARNING, message, "references do not leave a namespace: give both the same")


def _find_near(use: _Use, targets: Sequence[_Target]) -> str:
    names = [each.name for each in targets if each.kind == use.target and _is_reachable(use, each)]
    return find_nearest(use.name, names, 0.85)


def _targets(manifest: WrittenObject) -> Iterator[_Target]:
    value = manifest.value
    if not isinstance(value, dict):
        return
    if manifest.name:
        yield _Target(manifest, manifest.kind, manifest.name)
    spec = value.get("spec")
    if manifest.kind in {"FineTuneJob", "Checkpoint"} and isinstance(spec, dict):
        line = spec.get("modelLine")
        if isinstance(line, str):
            yield _Target(manifest, LINE, line)
    if manifest.kind == "Kustomization":
        for generated, kind in (("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")):
            for each in value.get(generated) or ():
                if isinstance(each, dict) and isinstance(each.get("name"), str):
                    yield _Target(manifest, kind, each["name"])


def _uses(manifest: WrittenObject) -> Iterator[_Use]:
    spec = manifest.value.get("spec") if isinstance(manifest.value, dict) else None
    # What a ComputeProfile names is in the namespaces of its users.
    if manifest.kind == "ComputeProfile" or not is_ours(manifest.value):
        return
    for path, value in _texts(spec, ("spec",)):
        steps = [step for step in path[1:] if isinstance(step, str)]
        for each in _REFERENCES:
            if each.kind == manifest.kind and each.field == ".".join(steps):
                yield _Use(manifest, path, each.target, value)
        owner = steps[-2] if steps[1:] and steps[-1] == "name" else ""
        yield from (
            _Use(manifest, path, kind, value) for end, kind in _SUFFIXES.items() if owner.endswith(end)
        )
        uri = _OPEN.match(value) if steps[-1:] == ["uri"] else None
        if uri:
            yield _Use(manifest, path, _SCHEMES[uri["scheme"]], uri["name"])


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts(child, (*path, key))
