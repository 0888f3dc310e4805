# SPDX-License-Identifier: Apache-2.0
"""Cases of the golden tests: base objects or another case, merge patches of those, and the reviewed plan.

tests/golden/README.md describes the files.
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from finetune_operator.plan import Manifest
from tests.mergepatch import merged

GOLDEN: Final = Path(__file__).parents[2] / "golden"
CASES: Final = sorted(path.stem for path in (GOLDEN / "input").glob("*.yaml"))
TIMESTAMP: Final = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """Reads timestamps as text, as in JSON; `!json` is an object as compact JSON text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's attribute
        first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def json_text(self, node: yaml.MappingNode) -> str:
        value = self.construct_mapping(node, deep=True)
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_Loader.add_constructor("!json", _Loader.json_text)


@dataclass(frozen=True)
class Case:
    """The input of one reconcile pass.

    Attributes:
        now: the time of the pass in ISO 8601.
        reconcile: the object to reconcile, as Kind/name.
        given: names of base objects, by their file.
        objects: all existing objects.
        progress: the last report of the pod of a stage, and `stage`.
        report: the report target of pods.
    """

    now: str
    reconcile: str
    given: dict[str, list[str]]
    objects: tuple[Manifest, ...]
    progress: dict[str, Any] | None = None
    report: dict[str, Any] | None = None


def load(path: Path, bases: Path = GOLDEN / "base") -> Case:
    """Read a case, which may state the case that it differs from.

    Raises:
        ValueError: it names a base object that does not exist, or patches one that it does not name, or its
            base has a base.
    """
    head, *documents = _documents(path)
    inherited: list[Any] = []
    if "base" in head:
        base_head, *inherited = _documents(path.with_stem(_base(path, head)))
        head = merged(base_head, head, by_name=True)
        del head["base"]
    objects: dict[str, Manifest] = {}
    for file, names in head["given"].items():
        base = base_objects(bases / f"{file}.yaml")
        for name in names:
            if name not in base:
                raise ValueError(f"{path}: {file}.yaml has no {name}")
            objects[name] = base[name]
    for document in inherited:
        if (name := key(document)) in objects or "apiVersion" in document:
            objects[name] = merged(objects.get(name), document, by_name=True)
    for document in documents:
        name = key(document)
        if (name in objects) == ("apiVersion" in document):
            raise ValueError(
                f"{path}: {name} is {'a base object' if name in objects else 'no base object of this case'}:"
                " a patch has no apiVersion, and any other object has one"
            )
        objects[name] = merged(objects.get(name), document, by_name=True)
    return Case(**head, objects=tuple(objects.values()))


def reviewed(path: Path) -> dict[str, Any]:
    """The reviewed plan of a case, which may be a patch of that of another case.

    Raises:
        ValueError: its base has a base.
    """
    (plan,) = _documents(path)
    if "base" not in plan:
        return dict(plan)
    (base,) = _documents(path.with_stem(_base(path, plan)))
    del plan["base"]
    return dict(merged(base, plan, by_name=True))


def base_of(path: Path) -> str | None:
    """The case that the input or the reviewed plan of a case differs from, if it states one."""
    return next(_documents(path)).get("base") if path.exists() else None


def _base(path: Path, head: dict[str, Any]) -> str:
    base = str(head["base"])
    if base_of(path.with_stem(base)) is not None:
        raise ValueError(f"{path}: its base {base} has a base")
    return base


@functools.cache
def base_objects(file: Path) -> dict[str, Manifest]:
    """The objects of a base file, by Kind/name."""
    return {key(document): document for document in _documents(file)}


def key(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def _documents(file: Path) -> Iterator[Any]:
    return yaml.load_all(file.read_text(), _Loader)
