# SPDX-License-Identifier: Apache-2.0
"""The API server accepts every example, and every object and part of one in the documentation."""

import functools
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Kind, build_crd
from tests.docsblocks import fragments
from tests.integration.api import Api, Object
from tests.integration.rules import files
from tests.integration.rules.requests import NAMESPACE, try_create
from tests.mergepatch import merged

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
MANIFESTS: Final[dict[str, Object]] = {
    f"{path.relative_to(EXAMPLES)}:{manifest['metadata']['name']}": manifest
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
    if manifest["kind"] in KINDS_BY_NAME
}
PARTS: Final = ("", "spec", "spec.evaluation", "spec.strategy")
"""Fields that a part of an object in the documentation may be the content of."""

FOREIGN: Final = frozenset({"integrations", "seriesQuery"})
"""Fields of settings that are not objects: those of Kueue and of the Prometheus adapter."""


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_api_server_accepts_an_example(api: Api, name: str) -> None:
    manifest = MANIFESTS[name]
    if KINDS_BY_NAME[manifest["kind"]].namespaced:
        manifest = merged(manifest, {"metadata": {"namespace": NAMESPACE}})

    verdict = try_create(api, manifest)

    assert verdict.accepted, verdict.message


def candidates(written: Object) -> list[Object]:
    """`written` in the smallest object of each kind that has its fields; nothing if no kind has them."""
    if "defaultProfile" in written:
        written = {"kind": "ComputeProfile", "spec": written["defaultProfile"]["spec"]}
    kinds = [kind for kind in KINDS if written.get("kind", kind.name) == kind.name]
    return [
        _completed(kind, part, written)
        for kind in kinds
        for part in PARTS
        if written.keys() <= _fields(kind, part)
    ]


def _parsed(text: str) -> Object:
    digests = re.sub(r"(sha256:|checkpoints/)(\w*)…", lambda cut: cut[1] + cut[2].ljust(64, "0"), text)
    names = digests.replace("…", "etc").replace("$CHECKPOINT", "routing-1a2b3-40-0a1b2c3d")
    parsed: Object = yaml.safe_load(names)
    return parsed


@functools.cache
def _fields(kind: Kind, part: str) -> set[str]:
    fields = build_crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for name in part.split(".") if part else ():
        fields = fields.get(name, {}).get("properties", {})
    return set(fields)


def _completed(kind: Kind, part: str, written: Object) -> Object:
    for name in reversed(part.split(".") if part else ()):
        written = {name: written}
    # A base model replaces that of the smallest object: it is exactly one of several fields.
    replaced = {"spec": {"baseModel": None}} if "baseModel" in written.get("spec", {}) else {}
    completed: Object = merged(merged(files.minimal(kind), replaced), written)
    return completed


DOCUMENTED: Final = {str(fragment): _parsed(fragment.text) for fragment in fragments()}
OURS: Final = {place: objects for place, written in DOCUMENTED.items() if (objects := candidates(written))}
"""By their place in the documentation, the objects that each object or part of one may belong to."""


@pytest.mark.parametrize("place", OURS)
def test_the_api_server_accepts_what_the_documentation_shows(api: Api, place: str) -> None:
    verdicts = [try_create(api, each) for each in OURS[place]]

    assert any(verdict.accepted for verdict in verdicts), [verdict.message for verdict in verdicts]


def test_the_documentation_shows_no_part_of_an_object_that_no_kind_has() -> None:
    foreign = {
        place
        for place, written in DOCUMENTED.items()
        if written.get("kind", "FineTuneJob") not in KINDS_BY_NAME or written.keys() & FOREIGN
    }

    assert DOCUMENTED.keys() - OURS.keys() == foreign
