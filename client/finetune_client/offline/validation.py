# SPDX-License-Identifier: Apache-2.0
"""Judge the objects of files: each by its definition, then the references between them."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, Final

from finetune_client.offline.definitions import API_VERSION, GROUP, SCHEMAS
from finetune_client.offline.findings import Finding, Located, Path, Severity, join_field
from finetune_client.offline.manifests import WrittenObject
from finetune_client.offline.metadata import check_metadata
from finetune_client.offline.names import (
    advise_foreign,
    advise_unknown,
    advise_value,
    find_nearest,
    recognize,
)
from finetune_client.offline.references import check_references
from finetune_client.offline.rules import check_rules
from finetune_client.offline.schema import (
    NOT_JUDGED,
    check_values,
    complete,
    is_ours,
    unknown_fields,
)

FOREIGN_OBJECTS: Final = ("kaito.sh", "kubeflow.org", "kserve.io")
"""API groups of the software of docs/coming-from.md."""


def judge(manifests: Sequence[WrittenObject]) -> list[Located]:
    """All findings about the objects of the files, in the order of the files."""
    order = {name: number for number, name in enumerate(dict.fromkeys(each.file for each in manifests))}
    patches = _find_patches(manifests)
    overlays = {file: patches.get(os.path.realpath(file)) for file in order}
    whole = [each for each in manifests if overlays[each.file] is None]
    found = [manifest.locate(finding) for manifest in whole for finding in judge_object(manifest)]
    found += check_references([each for each in whole if isinstance(each.value, dict)])
    for each in manifests:
        if (folder := overlays[each.file]) is not None:
            text = f"not judged: a patch; judge the result: kubectl kustomize {folder} | finetune validate -"
            found.append(each.locate(Finding(Severity.INFO, (), "", text)))
    return sorted(found, key=lambda each: (order[each.file], each.line))


def _find_patches(manifests: Iterable[WrittenObject]) -> dict[str, str]:
    """Files that kustomizations of the files use as patches, with the folders of these kustomizations."""
    patches: dict[str, str] = {}
    for each in manifests:
        if each.kind != "Kustomization" or "spec" in each.value:
            continue
        folder = str(File(each.file).parent)
        for field in ("patches", "patchesStrategicMerge", "patchesJson6902"):
            listed = each.value.get(field)
            for patch in listed if isinstance(listed, list) else ():
                path = patch.get("path") if isinstance(patch, dict) else patch
                # Of older kustomizations, a text of several lines is the patch itself.
                if isinstance(path, str) and path.isprintable():
                    patches[os.path.realpath(f"{folder}/{path}")] = folder
    return patches


def judge_object(manifest: WrittenObject) -> Iterator[Finding]:
    """Findings about one object by itself."""
    value = manifest.value
    if is_ours(value):
        yield from judge_ours(value)
    elif not isinstance(value, dict) or not ("apiVersion" in value or "kind" in value):
        yield from _judge_other_file(value, from_folder=manifest.from_folder)
    else:
        yield from _judge_other_kind(value)


def judge_ours(obj: dict[str, Any]) -> Iterator[Finding]:
    """Findings about an object of a kind of the operator, by itself."""
    kind = obj["kind"]
    schema = SCHEMAS[kind]
    yield from _judge_unknown(kind, obj)
    yield from check_metadata(obj)
    completed = complete(schema, {key: child for key, child in obj.items() if key != NOT_JUDGED})
    completed.pop(NOT_JUDGED, None)
    found = list(check_values(schema, completed, ()))
    for each in found:
        yield _advised(kind, obj, each.finding)
    if not any(each.hides_rules for each in found):
        metadata = completed.get("metadata")
        names = obj["metadata"] if isinstance(metadata, dict) else {}
        visible = {key: names[key] for key in ("name", "generateName") if isinstance(names.get(key), str)}
        for finding in check_rules(schema, completed | {"metadata": {"name": "", **visible}}):
            yield _advised(kind, obj, finding)
    yield from _judge_labels(kind, obj)


def _judge_unknown(kind: str, obj: dict[str, Any]) -> Iterator[Finding]:
    for unknown in unknown_fields(SCHEMAS[kind], obj):
        field = join_field(unknown.path)
        yield Finding(Severity.ERROR, unknown.path, field, "unknown field", advise_unknown(kind, unknown))


def _advised(kind: str, obj: dict[str, Any], finding: Finding) -> Finding:
    value = _at(obj, finding.path)
    # A sentence about the value says what to do.
    advice = (
        ""
        if isinstance(value, str) and f"{value} " in finding.message
        else advise_value(kind, finding.path, value)
    )
    return Finding(finding.severity, finding.path, finding.field, finding.message, advice)


def _at(value: Any, path: Path) -> Any:
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _judge_labels(kind: str, obj: dict[str, Any]) -> Iterator[Finding]:
    labels = _at(obj, ("metadata", "labels"))
    for name, value in labels.items() if isinstance(labels, dict) else ():
        path: Path = ("metadata", "labels", name)
        advice = advise_foreign(kind, path, value)
        if advice:
            text = "the operator does not read this label"
            yield Finding(Severity.WARNING, path, f"metadata.labels[{name}]", text, advice)


def _judge_other_file(value: Any, *, from_folder: bool) -> Iterator[Finding]:
    software, advice = recognize(value) if isinstance(value, dict) else ("", {})
    if software:
        message = f"settings of {software}, not an object: write them as fields of objects"
        yield Finding(Severity.ERROR, (), "", message, "docs/coming-from.md has the table")
        for name, text in advice.items():
            yield Finding(Severity.INFO, (name,), name, text)
    elif from_folder:
        yield Finding(Severity.INFO, (), "", "not judged: apiVersion and kind are missing")
    else:
        message = f"not an object: add apiVersion and kind, for example apiVersion: {API_VERSION}"
        yield Finding(Severity.ERROR, (), "", message)


def _judge_other_kind(obj: dict[str, Any]) -> Iterator[Finding]:
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if not isinstance(kind, str) or not kind:
        yield _wrong("kind", "is required", _one_of(SCHEMAS))
        return
    near = find_nearest(kind, SCHEMAS, 0.75)
    if not isinstance(version, str) or not version:
        if "kustomization" not in kind.lower():
            yield _wrong("apiVersion", "is required", f"write apiVersion: {API_VERSION}" if near else "")
        return
    group = version.partition("/")[0]
    if version == API_VERSION:
        advice = f"did you mean {near}?" if near else _one_of(SCHEMAS)
        yield _wrong("kind", f"{version} has no kind {kind}", advice)
    elif near and (find_nearest(group, [GROUP], 0.7) or group in {"", "v1alpha1", "v1"}):
        also = f"apiVersion: {API_VERSION} and kind: {near}" if near != kind else f"apiVersion: {API_VERSION}"
        yield _wrong("apiVersion", f"{version} has no kind {kind}", f"write {also}")
    elif group == GROUP:
        yield _wrong("apiVersion", f"{GROUP} has no version {version}", f"write apiVersion: {API_VERSION}")
    elif kind in SCHEMAS:
        message = f"not judged: a {kind} of {version}, not of this operator"
        advice = f"the operator's has apiVersion: {API_VERSION}"
        yield Finding(Severity.WARNING, ("apiVersion",), "apiVersion", message, advice)
    else:
        known = any(group.endswith(each) for each in FOREIGN_OBJECTS)
        advice = "docs/coming-from.md says what to write for this operator" if known else ""
        yield Finding(Severity.INFO, (), "", f"not judged: {version} is not an API of this operator", advice)


def _wrong(field: str, message: str, advice: str) -> Finding:
    return Finding(Severity.ERROR, (field,), field, message, advice)


def _one_of(names: Iterable[str]) -> str:
    return f"the kinds are {', '.join(names)}"
