# SPDX-License-Identifier: Apache-2.0
"""Compares objects with the models of a Python client of Kubernetes, which are generated from its schemas.

    PYTHONPATH=FOLDER python clientschemas.py < objects.jsonl

prints for each object a line with the fields that the client does not have or has with another type, as JSON.
"""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

from kubernetes import client

TYPES: Final = {
    "str": str,
    "bytes": str,
    "datetime": str,
    "int": int,
    "float": int | float,
    "bool": bool,
    "object": object,
}
"""Types of fields that are not models, as they appear in JSON."""
LIST: Final = re.compile(r"[Ll]ist\[(.+)\]")
MAP: Final = re.compile(r"[Dd]ict[(\[]str, (.+)[)\]]")


def model_of(manifest: dict[str, Any]) -> str | None:
    """Name of the model of an object; None if this version does not serve its kind in its group."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    parts = group.removesuffix(".k8s.io").split(".") if group else ["core"]
    version = version.capitalize()
    name = f"{version}{manifest['kind']}"
    api = f"{''.join(part.capitalize() for part in parts)}{version}Api"
    return name if hasattr(client, name) and hasattr(client, api) else None


def problems(value: Any, kind: str, path: str) -> Iterator[str]:
    """Fields of the value that differ from the model or type `kind`."""
    if value is None:
        return
    if kind in TYPES:
        if not isinstance(value, TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
            yield f"{path} is not a value of type {kind}"
    elif found := LIST.fullmatch(kind):
        for each in value:
            yield from problems(each, found[1], f"{path}[]")
    elif found := MAP.fullmatch(kind):
        for key, each in value.items():
            yield from problems(each, found[1], f"{path}.{key}")
    else:
        model = getattr(client, kind)
        fields = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
        for key, each in value.items():
            where = f"{path}.{key}" if path else key
            if key in fields:
                yield from problems(each, fields[key], where)
            else:
                yield where


def main() -> None:
    for line in sys.stdin:
        manifest = json.loads(line)
        kind = model_of(manifest)
        found = ["kind"] if kind is None else sorted(set(problems(manifest, kind, "")))
        print(json.dumps(found))


if __name__ == "__main__":
    main()
