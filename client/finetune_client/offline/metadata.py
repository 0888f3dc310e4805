# SPDX-License-Identifier: Apache-2.0
"""Judge the metadata of an object, as the API server does for every kind."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_client.offline.findings import Finding, Path, Severity, join_field
from finetune_client.offline.regex import is_match

_LABEL: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_SUBDOMAIN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_QUALIFIED_NAME: Final = r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$"
_MAX_ANNOTATION_BYTES: Final = 256 * 2**10


def check_metadata(obj: Mapping[str, Any]) -> Iterator[Finding]:
    """What the API server refuses in `metadata`."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, dict):
        yield _error(("metadata", "name"), "an object needs metadata.name")
        return
    yield from _check_name(metadata)
    namespace = metadata.get("namespace")
    valid = isinstance(namespace, str) and len(namespace) <= 63 and is_match(namespace, _LABEL)
    if namespace and not valid:
        yield _error(("metadata", "namespace"), f"{namespace} is not a valid name: use {_ALLOWED}")
    for part in ("labels", "annotations"):
        entries = metadata.get(part)
        if entries is None:
            continue
        if not isinstance(entries, dict):
            yield _error(("metadata", part), "must be an object of names and texts")
            continue
        for name, value in entries.items():
            yield from _check_entry(part, name, value)
    total = sum(len(f"{name}{value}".encode()) for name, value in _entries(metadata, "annotations"))
    if total > _MAX_ANNOTATION_BYTES:
        yield _error(("metadata", "annotations"), f"{total:,} bytes are more than 256 KiB")


_ALLOWED: Final = "lower-case letters, digits and '-', with a letter or digit at both ends"


def _check_name(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    name = metadata.get("name")
    if not name:
        if not metadata.get("generateName"):
            yield _error(("metadata", "name"), "an object needs metadata.name")
    elif not isinstance(name, str):
        yield _error(("metadata", "name"), f'must be text: write it in quotes: "{name}"')
    elif len(name) > 253 or not is_match(name, _SUBDOMAIN):
        yield _error(("metadata", "name"), f"{name} is not a valid name: use {_ALLOWED}")


def _check_entry(part: str, name: str, value: Any) -> Iterator[Finding]:
    path: Path = ("metadata", part, name)
    prefix, slash, last = name.rpartition("/")
    if len(last) > 63 or not is_match(last, _QUALIFIED_NAME) or (slash and not is_match(prefix, _SUBDOMAIN)):
        yield Finding(
            Severity.ERROR,
            path,
            f"metadata.{part}",
            f"{name} is not a valid name: use at most 63 letters, digits, '-', '_' and '.'",
        )
    if not isinstance(value, str):
        yield _error(path, f'must be text: write it in quotes: "{value}"')
    elif part == "labels" and value and (len(value) > 63 or not is_match(value, _QUALIFIED_NAME)):
        yield Finding(
            Severity.ERROR,
            path,
            f"metadata.{part}",
            f"{value} is not a valid value: use at most 63 letters, digits, '-', '_' and '.'",
        )


def _entries(metadata: Mapping[str, Any], part: str) -> list[tuple[str, Any]]:
    found = metadata.get(part)
    return list(found.items()) if isinstance(found, dict) else []


def _error(path: Path, message: str) -> Finding:
    return Finding(Severity.ERROR, path, join_field(path), message)
