# SPDX-License-Identifier: Apache-2.0
"""Names of a table occur only in the table and in their own module, and nowhere else in the product."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Final, get_args

import pytest

from finetune_operator import stage_table
from finetune_operator.api.crd import KINDS
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.status import explanations
from finetune_trainer import rows
from finetune_trainer.contract import method, metrics, vocabulary
from finetune_trainer.contract.vocabulary import RowForm
from finetune_trainer.data.containers.base import TABLES
from finetune_trainer.data.formats.registry import FORMATS
from finetune_trainer.scoring.textmetrics.table import TEXT_METRICS

ROOT: Final = Path(__file__).parents[2]
PRODUCT: Final = (
    ROOT / "operator" / "finetune_operator",
    ROOT / "trainer_image" / "finetune_trainer",
    ROOT / "client" / "finetune_client",
)
MEASURES: Final = PRODUCT[1] / "evaluate" / "metrics"
TEXTS: Final = PRODUCT[1] / "scoring" / "textmetrics"
TRAINERS: Final = PRODUCT[1] / "train" / "preference"
DATA: Final = PRODUCT[1] / "data"

RECONCILE: Final = PRODUCT[0] / "reconcile"
STAGE_MODULES: Final = {
    "prepare": {"dataset/source_check.py", "finetunejob/inputs.py"},
    "preflight": {"finetunejob/preflight.py", "features/feature.py"},
    "train": {"finetunejob/train.py"},
    "evaluate": {"evaluation_stages.py", "features/feature.py"},
    "score": {"features/custom_metrics.py"},
    "analyze": set(),
    "collect": {"stages/runner.py", "stages/stage_request.py"},
    "cleanup": {"records/content_removal.py"},
    "download": {"inferencedeployment/revision/base_model.py"},
    "fill": {"features/model_cache.py"},
    "merge": {"features/merging.py"},
}
"""Modules that start a stage's Job or record its result."""

WORDS: Final = {"accuracy", "loss", "truncated"}
"""Names that are also words of plain English and of other fields; `STATED` finds them as a metric."""
STATED: Final = r"""metric\w*\s*(?:==|!=|=|:|in)\s*[\[(]?\s*['"]{}['"]"""


@cache
def texts(module: Path) -> tuple[str, ...]:
    """The string constants of a module without docstrings."""
    nodes = tuple(ast.walk(ast.parse(module.read_text())))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    constants = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return tuple(node.value for node in constants if isinstance(node.value, str))


def modules_with(name: str) -> set[Path]:
    modules = (module for folder in PRODUCT for module in folder.rglob("*.py"))
    if name in WORDS:
        return {module for module in modules if re.search(STATED.format(name), module.read_text())}
    word = re.compile(rf"\b{name}\b")
    return {module for module in modules if any(word.search(text) for text in texts(module))}


def source(of: object) -> Path:
    return Path(inspect.getfile(of))  # type: ignore[arg-type] # a module or a class


@pytest.mark.parametrize("name", metrics.METRICS)
def test_the_name_of_a_metric_stands_once(name: str) -> None:
    of_texts = metrics.METRICS[name].in_rollouts
    table = TEXTS / "table.py" if of_texts else MEASURES / "registry.py"
    assert modules_with(name) <= {source(metrics), table, (TEXTS if of_texts else MEASURES) / f"{name}.py"}


@pytest.mark.parametrize("name", set(FORMATS) - set(get_args(RowForm)) - set(TABLES))
def test_the_name_of_a_format_stands_once(name: vocabulary.DataFormat) -> None:
    assert modules_with(name) == {source(vocabulary), source(FORMATS[name])}


def test_every_metric_of_the_contract_has_a_module() -> None:
    of_texts = set(metrics.metrics_where(lambda info: info.in_rollouts))
    others = set(metrics.METRICS) - of_texts
    assert {module.stem for module in MEASURES.glob("*.py")} == {"__init__", "registry", *others}
    assert {module.stem for module in TEXTS.glob("*.py")} == {"__init__", "table", *of_texts}
    assert set(TEXT_METRICS) == of_texts


@pytest.mark.parametrize(
    ("name", "value", "over", "gain"),
    [("exact_match", 0.75, 0.5, 0.25), ("loss", 0.75, 0.5, -0.25), ("f1_token", 0.25, 0.5, -0.25)],
)
def test_a_gain_is_positive_in_the_direction_of_the_metric(
    name: metrics.Metric, value: float, over: float, gain: float
) -> None:
    assert metrics.METRICS[name].gain(value, over) == gain


@pytest.mark.parametrize("name", [*method.OBJECTIVES, *method.TYPES])
def test_the_name_of_an_objective_or_a_type_stands_once(name: str) -> None:
    """Finds a name alone or in quotation marks, as code and CEL use it; messages may contain names."""
    named = {
        module
        for folder in PRODUCT
        for module in folder.rglob("*.py")
        if any(text == name or f"'{name}'" in text for text in texts(module))
    }
    if name in get_args(vocabulary.RowForm):
        named -= {module for module in named if module == source(rows) or DATA in module.parents}
    assert named <= {source(method), source(vocabulary), TRAINERS / f"{name.lower()}.py"}


def test_every_objective_and_type_has_a_row_and_a_pair_and_those_with_judged_rows_a_module() -> None:
    assert tuple(method.OBJECTIVES) == get_args(method.Objective)
    assert tuple(method.TYPES) == get_args(method.MethodType)
    pairs = set(method.METHODS)
    assert {objective for objective, _ in pairs} == set(method.OBJECTIVES)
    assert {type_ for _, type_ in pairs} == set(method.TYPES)
    assert (method.DEFAULT_OBJECTIVE, method.DEFAULT_TYPE) in pairs
    judged = method.objectives_where(lambda info: info.rows.is_preference_data)
    assert {name.lower() for name in judged} <= {module.stem for module in TRAINERS.glob("*.py")}


@pytest.mark.parametrize("name", stage_table.STAGES)
def test_the_name_of_a_stage_stands_once_in_the_operator(name: str) -> None:
    """The row says what differs between stages. The metric of lost time belongs to `status.training`.

    `pods[].stages` is part of the API; `test_stagetable.py` compares its values with the table.
    """
    named = {module for module in PRODUCT[0].rglob("*.py") if any(text == name for text in texts(module))} - {
        PRODUCT[0] / "metrics" / "changes.py",
        PRODUCT[0] / "api" / "pod_template.py",
    }
    assert named <= {source(stage_table), *(RECONCILE / module for module in STAGE_MODULES[name])}


@pytest.mark.parametrize("name", [kind.name for kind in KINDS])
def test_the_name_of_a_kind_stands_in_the_api_and_its_package_only(name: str) -> None:
    """Others name its model, or loop over the rows of the registry. Messages and docs may contain names."""
    of_kind = PRODUCT[0] / "api", RECONCILE / name.lower(), source(explanations)
    named = {
        module
        for module in PRODUCT[0].rglob("*.py")
        if any(text == name for text in texts(module)) and not {*of_kind} & {module, *module.parents}
    }
    assert named == set()


def test_a_kind_has_one_row_in_its_package() -> None:
    for name, row in KIND_ROWS.items():
        assert source(row.reconcile).parent == RECONCILE / name.lower()
