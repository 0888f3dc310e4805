"""The examples parse as what they are, and fit together."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Model
from finetune_operator.status.reserved import not_implemented
from finetune_trainer.contract import Split
from finetune_trainer.prepare.split import split_of
from finetune_trainer.rows import load_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
FIRST = EXAMPLES / "ticket-routing"
SECOND = FIRST / "v2"
KINDS: dict[str, type[Dataset | FineTuneJob | InferenceDeployment]] = {
    "Dataset": Dataset,
    "FineTuneJob": FineTuneJob,
    "InferenceDeployment": InferenceDeployment,
}


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (str(path.relative_to(EXAMPLES)), manifest)
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
        if manifest["apiVersion"].startswith("finetune.dev/")
    ]


def strict(model: type[Model], value: Any) -> Any:
    """The model of `value`; a field that the model does not have fails."""
    parsed = model.model_validate(value)
    written = parsed.to_dict()
    assert _names(value) <= _names(written), f"unknown fields: {_names(value) - _names(written)}"
    return parsed


def _names(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict):
        return {
            name
            for key, child in value.items()
            for name in {f"{path}.{key}", *_names(child, f"{path}.{key}")}
        }
    if isinstance(value, list | tuple):
        return {name for child in value for name in _names(child, f"{path}[]")}
    return set()


@pytest.mark.parametrize(
    ("path", "manifest"), manifests(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_example_uses_only_fields_that_exist_and_are_implemented(
    path: str, manifest: dict[str, Any]
) -> None:
    resource = strict(KINDS[manifest["kind"]], manifest)
    assert "namespace" not in manifest["metadata"], f"{path} should go into any namespace"
    assert not_implemented(resource.spec) == ()


def test_the_second_part_has_all_rows_of_the_first_and_more() -> None:
    data = FIRST / "data"
    joined = (data / "tickets.jsonl").read_text() + (data / "tickets-more.jsonl").read_text()
    assert (SECOND / "data" / "tickets.jsonl").read_text() == joined


def test_both_parts_split_alike_and_hold_out_enough_rows_to_judge_by() -> None:
    first, second = (
        Dataset.model_validate(yaml.safe_load((folder / "dataset.yaml").read_text()))
        for folder in (FIRST, SECOND)
    )
    assert first.name == second.name
    assert first.spec.split == second.spec.split
    split = Split.model_validate(first.spec.split.model_dump(exclude={"group_by"}))
    rows = load_rows(FIRST / "data" / "tickets.jsonl")
    assert sum(split_of(row, None, split) == "test" for row in rows) >= 30


def test_the_second_run_differs_from_the_first_in_its_name_only() -> None:
    first, second = (yaml.safe_load((folder / "finetunejob.yaml").read_text()) for folder in (FIRST, SECOND))
    assert second["metadata"]["name"] == first["metadata"]["name"] + "-v2"
    assert first["spec"] == second["spec"]
