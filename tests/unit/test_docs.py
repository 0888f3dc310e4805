# SPDX-License-Identifier: Apache-2.0
"""The documentation names all reasons, metrics and events that it lists, and its links are valid."""

import re
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Final

import pytest
import yaml

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.status import explanations
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.serve import constraint_limits
from hack.api_page import FENCED, headings

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ROADMAP.md",
    ROOT / "hack" / "README.md",
    *sorted(path for folder in ("docs", "tests", "tools") for path in (ROOT / folder).rglob("*.md")),
]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


MEANINGS = (explanations.IN_PROGRESS, explanations.WAITING, explanations.SUCCESS, explanations.FAILURE)


def test_every_condition_and_reason_is_explained() -> None:
    states = {ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.SUSPENDED}
    assert {row.type for row in explanations.CONDITIONS} == {*ConditionType} - states
    explained = {reason for meanings in MEANINGS for reasons in meanings for reason in reasons}
    assert explained == {*Reason, *FailureReason}
    assert {reason for row in explanations.EVENTS for reason in row.reasons} == {*EventReason}


def test_the_page_on_failures_has_every_reason_of_one_and_none_that_no_object_ever_has() -> None:
    named = set(re.findall(r"`([A-Z][A-Za-z]+)`", (ROOT / "docs" / "failures.md").read_text()))
    of_failures = {*chain.from_iterable((*explanations.WAITING, *explanations.FAILURE))}
    assert of_failures <= named
    of_containers = "ErrImagePull ImagePullBackOff InvalidImageName CreateContainerError RunContainerError"
    of_others = "StartError OutOfcpu UnexpectedAdmissionError Terminating ReadWriteMany"
    foreign = {*of_containers.split(), *of_others.split()}
    known = {*Reason, *FailureReason}
    assert named - known <= foreign, "reasons of Kubernetes apart, every name is one of ours"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target, anchor in LINK.findall(FENCED.sub("", page.read_text())):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in headings(file), f"{page.name} links to {target}#{anchor}"


def test_the_objects_in_the_readme_are_ones_that_the_api_knows_and_implements() -> None:
    _, _, rest = (ROOT / "README.md").read_text().partition("```yaml")
    manifests = list(yaml.safe_load_all(rest.partition("```")[0]))
    assert [manifest["kind"] for manifest in manifests] == ["Dataset", "FineTuneJob", "InferenceDeployment"]
    dataset, job, endpoint = manifests
    assert find_unimplemented(Dataset.model_validate(dataset).spec) == ()
    assert find_unimplemented(FineTuneJob.model_validate(job).spec) == ()
    assert find_unimplemented(InferenceDeployment.model_validate(endpoint).spec) == ()


@pytest.mark.parametrize(
    ("kind", "page", "sentence"),
    [
        ("FineTuneJob", "docs/gitops.md", r"its spec cannot be changed, except ([^;]*?)\. "),
        ("FineTuneJob", "docs/troubleshooting.md", r"Only ([^;]*?) can change\."),
        (
            "FineTuneJob",
            "examples/ticket-routing/finetunejob.yaml",
            r"only ([^;]*?) of its spec can be changed",
        ),
        ("Evaluation", "docs/evaluation.md", r"its spec is immutable except ([^;]*?), and a finished one"),
        ("Evaluation", "examples/evaluation/evaluation.yaml", r"only ([^;]*?) of its spec can be"),
    ],
)
def test_a_page_that_lists_the_fields_of_a_record_that_can_change_names_all(
    kind: str, page: str, sentence: str
) -> None:
    text = re.sub(r"\s+(# )?", " ", (ROOT / page).read_text())
    found = re.search(sentence, text)
    assert found is not None
    fields = re.findall(r"[a-zA-Z.]{4,}", found[1])
    reference = (ROOT / "docs" / "api" / f"{kind.lower()}.md").read_text()
    entries = re.findall(r'^- <a id="spec\.([^"]+)".*\n\n(.*)$', reference, re.MULTILINE)
    assert set(fields) == {path for path, description in entries if " Mutable. " in description}


def test_the_index_lists_every_decision() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}[^)]+)\)", (folder / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in folder.glob("0*.md"))


def test_the_page_on_endpoints_has_the_limits_of_schemas() -> None:
    section = (ROOT / "docs" / "endpoints.md").read_text().partition("### Limits of schemas\n")[2]
    rows = re.findall(r"^\| .*", section.partition("\n## ")[0], re.MULTILINE)
    shown = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]{2,}", "".join(rows))}
    assert shown == {
        constraint_limits.MAX_CHARACTERS,
        constraint_limits.MAX_COUNTED_PROPERTIES,
        constraint_limits.MAX_ITEMS,
        constraint_limits.MAX_PROPERTIES,
        constraint_limits.MAX_VALUES,
        constraint_limits.MAX_ALL_BRANCHES,
        constraint_limits.MAX_BRANCHES,
        constraint_limits.MAX_NESTING,
        constraint_limits.MAX_REPETITIONS,
    }


PIXELS: Final = {"": 1.0, "px": 1.0, "pt": 4 / 3}


def to_pixels(length: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]*)", length).groups()  # type: ignore[union-attr] # a length
    return float(number) * PIXELS[unit]


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").rglob("*.svg")), ids=attrgetter("name"))
def test_a_drawing_fits_a_page_and_its_text_can_be_read(picture: Path) -> None:
    drawing = picture.read_text()
    width = re.search(r'<svg[^>]*\swidth="([^"]+)"', drawing)
    sizes = re.findall(r'font-size(?:="|: )([\d.]+(?:px|pt)?)', drawing)
    unit = "pt" if width and width[1].endswith("pt") else ""
    assert width is not None
    assert to_pixels(width[1]) <= 760
    assert min(to_pixels(size if size[-1].isalpha() else size + unit) for size in sizes) >= 12
