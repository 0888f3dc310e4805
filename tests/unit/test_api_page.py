# SPDX-License-Identifier: Apache-2.0
"""The API reference: a heading per object, a list of its fields, and a guide to each field of a spec."""

import re
from collections.abc import Iterator

import pytest

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Kind
from hack import api_page
from hack.api_page import DOCS, GUIDES, HEADING, Schema, api_pages, guide, headings, schema

by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
FIELD = re.compile(r'^- <a id="([^"]+)" href="#([^"]+)">`(\w+)`</a> · (.+)$', re.MULTILINE)


def _paths(node: Schema, path: str) -> Iterator[str]:
    """Paths of the fields below an object, as `kubectl explain` takes them."""
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}"
        if f"{path}.{name}" != "status.conditions":
            yield from _paths(child.get("items", child), f"{path}.{name}")


def _fields(kind: Kind) -> set[str]:
    return {path for part in ("spec", "status") for path in _paths(schema(kind)["properties"][part], part)}


def _page(kind: str) -> str:
    return (DOCS / "api" / f"{kind.lower()}.md").read_text()


def _described(kind: str, path: str) -> str:
    """The entry of a field: its line, and its description."""
    found = re.search(rf'^- <a id="{re.escape(path)}".*?(?=^- |^#|\Z)', _page(kind), re.MULTILINE | re.DOTALL)
    assert found is not None, path
    return found[0].partition("</a> · ")[2]


@by_kind
def test_every_field_of_a_spec_has_a_guide(kind: Kind) -> None:
    fields = [f"spec.{name}" for name in schema(kind)["properties"]["spec"]["properties"]]
    assert [path for path in fields if guide(kind, path) is None] == []


def test_every_guide_is_one_to_a_field() -> None:
    assert GUIDES.keys() == {"all kinds", *KINDS_BY_NAME}
    for kind in KINDS:
        assert GUIDES[kind.name].keys() - _fields(kind) == set(), kind.name
    assert GUIDES["all kinds"].keys() - set().union(*map(_fields, KINDS)) == set()


@pytest.mark.parametrize("target", ["data.md#no-such-heading", "no-such-page.md"])
def test_a_guide_that_does_not_exist_fails_the_generation(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = {**GUIDES, "Dataset": {**GUIDES["Dataset"], "spec.sources": target}}
    monkeypatch.setattr(api_page, "GUIDES", guides)
    with pytest.raises(LookupError, match=rf"docs/{target} does not exist"):
        api_pages()


@by_kind
def test_a_page_describes_every_field_once_or_names_where_it_is_described(kind: Kind) -> None:
    found = FIELD.findall(_page(kind.name))
    entries = {path: text for path, _, _, text in found}
    assert len(found) == len(entries), "each field has one anchor"
    assert all(path == link and path.endswith(f".{name}") for path, link, name, _ in found)
    elsewhere = tuple(f"{path}." for path, text in entries.items() if " as [`" in text)
    assert {path for path in _fields(kind) if not path.startswith(elsewhere)} == entries.keys()


@by_kind
def test_every_heading_has_an_anchor_of_its_own(kind: Kind) -> None:
    page = DOCS / "api" / f"{kind.name.lower()}.md"
    assert len(HEADING.findall(page.read_text())) == len(headings(page))


@pytest.mark.parametrize("name", ["api.md", *(f"api/{kind.name.lower()}.md" for kind in KINDS)])
def test_a_page_has_no_table_because_a_phone_shows_only_its_first_column(name: str) -> None:
    assert not re.search(r"^\|", (DOCS / name).read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("kind", "path", "text"),
    [
        ("FineTuneJob", "spec.method.lora.r", "integer, 1 to 256"),
        ("FineTuneJob", "spec.method.lora.dropout", "number, ≥ 0, < 1"),
        ("FineTuneJob", "spec.method.lora.targetModules", "list of strings, 1 to 32 items"),
        ("FineTuneJob", "spec.baseModel.digest", "string, 71 characters"),
        ("FineTuneJob", "spec.hyperparameters.scheduler", "`Linear`, `Cosine` or `Constant`"),
        ("FineTuneJob", "spec.evaluation.compare", "list of `Base`, `Prompted` or `Live`, ≤ 3 items"),
        ("FineTuneJob", "spec.evaluation.gates", "list of [objects](#specevaluationgates), ≤ 16 items"),
        ("FineTuneJob", "spec.store.uri", "string, ≤ 900 characters · **required**"),
        ("FineTuneJob", "status.droppedRows.rows", "integer"),
        ("InferenceDeployment", "spec.restartedAt", "time"),
        ("InferenceDeployment", "spec.strategy.rollingUpdate.maxSurge", "integer or percentage"),
        ("ComputeProfile", "spec.pods.labels", "map of strings"),
    ],
)
def test_the_line_of_a_field_has_its_type_its_bounds_and_whether_it_is_required(
    kind: str, path: str, text: str
) -> None:
    assert _described(kind, path).partition("\n")[0] == text


def test_a_field_that_only_a_rule_requires_is_required() -> None:
    line, _, description = _described("FineTuneJob", "spec.modelLine").partition("\n")
    assert line == "string, ≤ 40 characters · **required**"
    assert "Required." not in description


def test_a_description_shows_its_default_its_addresses_as_code_and_its_guide() -> None:
    uri = _described("Dataset", "spec.sources.uri")
    assert "a pattern with \\*, ? or […]" in uri
    assert "`pvc://data/rows-*.jsonl` or `configmap://rows/*.jsonl`;" in uri
    assert uri.rstrip().endswith("Guide: [Storage: Sources](../storage.md#sources).")
    assert "**Default:** detected" in _described("Dataset", "spec.sources.format")


def test_the_fields_of_an_object_have_the_guide_of_the_object_around_it() -> None:
    _, _, section = _page("FineTuneJob").partition("### `spec.evaluation.tasks[].configMapRef`\n")
    assert "Guide: [Judges, custom metrics and tasks: General ability]" in section.partition("\n- ")[0]


def test_objects_with_equal_fields_are_described_once() -> None:
    assert "### `spec.evaluation.dataset.ref`" not in _page("FineTuneJob")
    assert "object as [`spec.dataset.ref`](#specdatasetref)" in _described(
        "FineTuneJob", "spec.evaluation.dataset.ref"
    )
