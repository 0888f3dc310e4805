# SPDX-License-Identifier: Apache-2.0
"""The files of a run: their objects, the ConfigMaps next to them, and what one machine cannot do."""

import base64
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.offline.findings import Severity, counted
from finetune_client.offline.manifests import WrittenObject, read_objects, read_written
from finetune_client.offline.validation import judge
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.meta import API_VERSION
from finetune_operator.plan import Manifest

KUSTOMIZATION: Final = ("kustomization.yaml", "kustomization.yml", "Kustomization")
READ_FIELDS: Final = frozenset(
    {"apiVersion", "kind", "metadata", "resources", "configMapGenerator", "generatorOptions", "namespace"}
)
"""Fields of a kustomization that a run carries out, or that change nothing for it."""
REPLACED: Final = frozenset({"PersistentVolumeClaim", "Namespace"})
"""Kinds of Kubernetes for which a local run has a folder. Other kinds are ignored, and named."""


Content = Mapping[str, Path | bytes]
"""The keys of a ConfigMap or Secret, each with a file or a value."""


@dataclass(slots=True)
class Input:
    """What the files of a run contain.

    Attributes:
        objects: objects of our kinds.
        contents: content of ConfigMaps and Secrets, by kind and name: keys with files or values.
        others: kinds and names of further objects.
        notes: one line per thing that a local run ignores.
        namespace: that of the kustomization of a folder; empty if it names none.
    """

    objects: list[Manifest] = field(default_factory=list)
    contents: dict[str, dict[str, Content]] = field(default_factory=lambda: {"ConfigMap": {}, "Secret": {}})
    others: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    namespace: str = ""

    def of(self, kind: str) -> list[Manifest]:
        """The objects of a kind."""
        return [each for each in self.objects if each["kind"] == kind]


def read_files(files: Sequence[Path]) -> Input:
    """The objects of YAML files or of the folders of kustomizations.

    Raises:
        OperationError: a file cannot be read, is not YAML, or an object is not valid; the details have the
            lines.
    """
    found = Input()
    paths = list(_expanded(files))
    written = {path: read_written(path) for path in dict.fromkeys(paths)}
    _refuse_invalid([each for objects in written.values() for each in objects])
    for path, objects in written.items():
        for number, each in enumerate(objects, 1):
            _add(found, path, number, each.value)
    for path in files:
        if path.is_dir():
            found.namespace = str((_kustomization(path) or {}).get("namespace") or found.namespace)
    for folder in dict.fromkeys(path.resolve().parent for path in paths):
        found.contents["ConfigMap"] |= generated_content(folder)
    if not found.of("FineTuneJob") and not found.of("Evaluation") and not found.of("InferenceDeployment"):
        raise _invalid(
            f"{', '.join(map(str, files))}: no FineTuneJob, Evaluation or InferenceDeployment, so there is"
            " nothing to run"
        )
    return found


def _expanded(files: Iterable[Path]) -> Iterator[Path]:
    """The files, with the resources of a kustomization in place of its folder."""
    for path in files:
        if not path.is_dir():
            yield path
            continue
        kustomization = _kustomization(path)
        if kustomization is None:
            yield from sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
            continue
        if unread := sorted(kustomization.keys() - READ_FIELDS):
            raise OperationError(
                f"{path}: `finetune run` does not carry out {', '.join(unread)} of a kustomization: let"
                " kubectl write the objects, and name the file",
                [shlex.join(["kubectl", "kustomize", str(path)]) + " > objects.yaml"],
                exit_code=ProgramExit.INVALID,
            )
        for resource in kustomization.get("resources", ()):
            yield from _expanded([path / resource])


def _kustomization(folder: Path) -> Manifest | None:
    for name in KUSTOMIZATION:
        if (folder / name).is_file():
            documents = read_objects(folder / name)
            return documents[0] if documents else {}
    return None


def _add(found: Input, path: Path, number: int, manifest: Manifest) -> None:
    kind, metadata = manifest.get("kind"), manifest.get("metadata") or {}
    if kind == "Kustomization" or (path.name in KUSTOMIZATION and "metadata" not in manifest):
        return
    name = metadata.get("name")
    if not isinstance(kind, str) or not isinstance(name, str):
        raise _invalid(f"{path}: document {number} has no kind or no metadata.name")
    if manifest.get("apiVersion") == API_VERSION and kind in KINDS_BY_NAME:
        found.objects.append(manifest)
    elif kind in found.contents:
        found.contents[kind][name] = dict(_values(manifest))
    else:
        found.others.append((kind, name))


def _refuse_invalid(written: Sequence[WrittenObject]) -> None:
    """Refuse objects that the API server would refuse, as `finetune validate` does.

    Raises:
        OperationError: one is not valid.
    """
    errors = [str(each) for each in judge(written) if each.finding.severity is Severity.ERROR]
    if errors:
        raise OperationError(
            f"the files are not valid ({counted(len(errors), 'error')}), and nothing was started:",
            details=errors,
            exit_code=ProgramExit.INVALID,
        )


def generated_content(folder: Path) -> dict[str, Content]:
    """The ConfigMaps that the kustomization of a folder generates from files and literals, by name.

    Raises:
        OperationError: one of the files does not exist.
    """
    contents: dict[str, Content] = {}
    for generator in (_kustomization(folder) or {}).get("configMapGenerator", ()):
        keys: dict[str, Path | bytes] = {}
        for entry in generator.get("files", ()):
            key, equals, file = entry.partition("=")
            path = folder / (file if equals else key)
            if not path.is_file():
                raise _invalid(f"ConfigMap {generator['name']} of {folder}: file {path} does not exist")
            keys[key if equals else path.name] = path
        literals = (each.partition("=") for each in generator.get("literals", ()))
        values = {key: value.encode() for key, _, value in literals}
        contents[generator["name"]] = {**keys, **values}
    return contents


def folder_content(folder: Path) -> Content:
    """The files of a folder as the keys of a ConfigMap or Secret."""
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def _values(manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """The keys and values of a ConfigMap or Secret."""
    for key, text in (manifest.get("stringData") or {}).items():
        yield key, str(text).encode()
    for key, text in (manifest.get("data") or {}).items():
        yield key, base64.b64decode(text) if manifest["kind"] == "Secret" else str(text).encode()
    for key, text in (manifest.get("binaryData") or {}).items():
        yield key, base64.b64decode(text)


def _invalid(message: str) -> OperationError:
    return OperationError(message, exit_code=ProgramExit.INVALID)


def adapt(found: Input, profile: Manifest, *, machine_resource: str, only_preflight: bool) -> list[Manifest]:
    """Our objects as one machine can run them; notes name what is ignored.

    What would change the verdict is refused, unless the run ends with preflight.

    Args:
        found: the files; gets the notes.
        profile: the only ComputeProfile.
        machine_resource: resource of the devices of this machine.
        only_preflight: whether nothing is trained.

    Raises:
        OperationError: an object needs what only a cluster has.
    """
    resource = profile["spec"].get("accelerator", {}).get("resource", "cpu")
    name = profile["metadata"]["name"]
    if not only_preflight:
        if resource != machine_resource:
            raise _needs_preflight(
                f"ComputeProfile {name} has devices {resource}, and this machine has {machine_resource}"
            )
        if profile["spec"].get("serving", {}).get("engine", "Transformers") != "Transformers":
            raise _needs_preflight(
                f"ComputeProfile {name} has the engine VLLM, which local runs do not start"
            )
    for kind, other in found.others:
        if kind not in REPLACED:
            found.notes.append(f"{kind} {other} is ignored: only a cluster has it")
    adapted = []
    for manifest in found.objects:
        kind, spec = manifest["kind"], dict(manifest.get("spec") or {})
        what = f"{kind} {manifest['metadata']['name']}"
        if kind == "ComputeProfile":
            found.notes.append(f"{what} is ignored: --profile FILE uses one")
            continue
        if kind == "FineTuneJob":
            spec = _run(what, spec, name, found.notes, profile, only_preflight=only_preflight)
        elif kind == "InferenceDeployment":
            spec = _endpoint(what, spec, name, found.notes)
        elif kind == "Evaluation" and spec.get("profile") not in (None, name):
            found.notes.append(f"{what}: profile {spec.pop('profile')} is ignored: it runs with {name}")
        _check_custom_metrics(what, spec, profile)
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        adapted.append({**manifest, "metadata": metadata} | ({"spec": spec} if "spec" in manifest else {}))
    return adapted


def _run(
    what: str, spec: Manifest, profile: str, notes: list[str], profiled: Manifest, *, only_preflight: bool
) -> Manifest:
    compute = dict(spec.get("compute") or {})
    nodes, devices = compute.get("nodes", 1), compute.get("devices", 1)
    most = profiled["spec"].get("accelerator", {}).get("maxPerPod", devices)
    if not only_preflight and nodes > 1:
        raise _needs_preflight(f"{what}: compute.nodes is {nodes}, and a local run has one machine")
    if not only_preflight and devices > most:
        raise _needs_preflight(f"{what}: compute.devices is {devices}, and this machine has {most}")
    for key in ("queueName", "workloadPriorityClass"):
        if key in compute:
            notes.append(f"{what}: compute.{key} is ignored: only a cluster has queues")
            del compute[key]
    if compute.get("profile") not in (None, profile):
        notes.append(f"{what}: compute.profile {compute.pop('profile')} is ignored: it runs with {profile}")
    return {**spec, "compute": compute}


def _endpoint(what: str, spec: Manifest, profile: str, notes: list[str]) -> Manifest:
    ignored = {
        "strategy": "one machine replaces the process of an endpoint",
        "traffic": "only a cluster has gateways",
        "availability": "only a cluster has several nodes",
    }
    for key, why in ignored.items():
        if spec.pop(key, None) is not None:
            notes.append(f"{what}: {key} is ignored: {why}")
    if spec.get("replicas", 1) > 1:
        notes.append(f"{what}: one process serves in place of {spec['replicas']} replicas")
        spec["replicas"] = 1
    compute = dict(spec.get("compute") or {})
    if compute.get("profile") not in (None, profile):
        notes.append(f"{what}: compute.profile {compute.pop('profile')} is ignored: it runs with {profile}")
        spec["compute"] = compute
    return spec


def _check_custom_metrics(what: str, spec: Manifest, profile: Manifest) -> None:
    evaluation: Any = spec.get("evaluation") or {}
    if (evaluation.get("customMetrics") or spec.get("customMetrics")) and not profile["spec"].get(
        "allow", {}
    ).get("customCode"):
        raise _invalid(
            f"{what}: custom metrics run in a sandbox that needs seccomp of Linux, which this machine does"
            " not have: remove customMetrics, or run on Linux or in a cluster"
        )


def _needs_preflight(problem: str) -> OperationError:
    return OperationError(
        f"{problem}. To see what that machine would say, add --until preflight",
        exit_code=ProgramExit.INVALID,
    )


def claims_of(objects: Iterable[Manifest]) -> set[str]:
    """Names of the claims that the objects' `pvc://` locations name."""
    return {name.partition("/")[0] for name in _locations(list(objects), "pvc://")}


def configmaps_of(objects: Iterable[Manifest]) -> set[str]:
    """Names of the ConfigMaps that the objects' `configmap://` locations name."""
    return {name.partition("/")[0] for name in _locations(list(objects), "configmap://")}


def _locations(node: Any, scheme: str) -> Iterator[str]:
    if isinstance(node, str):
        if node.startswith(scheme):
            yield node.removeprefix(scheme)
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _locations(value, scheme)
    elif isinstance(node, list):
        for value in node:
            yield from _locations(value, scheme)
