# SPDX-License-Identifier: Apache-2.0
"""The examples are valid and consistent, and their rows follow the rules that their pages state."""

import csv
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

import jsonschema
import pytest
import yaml

from finetune_operator.api.compute_profile import DEFAULT_PROFILE_LABEL, ComputeProfile, ComputeProfileSpec
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_schedule import FineTuneSchedule
from finetune_operator.api.finetune_sweep import FineTuneSweep
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import Model, find_unimplemented
from finetune_operator.api.pod_resources import CPU, quantity_value
from finetune_operator.api.pod_template import SIZED_STAGES
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_trainer.contract.dataset import Columns, Split
from finetune_trainer.contract.method import METHODS as ALL_METHODS
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import PrepareResult
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.formats.base import RawRow
from finetune_trainer.data.split_files import split_of
from finetune_trainer.rows import load_rows
from tests.trainer.preparing import RUN, Preparation
from tools.demo.install import PROFILE as DEMO

EXAMPLES = Path(__file__).parents[2] / "examples"
FIRST = EXAMPLES / "ticket-routing"
SECOND = FIRST / "v2"
FORMATS = EXAMPLES / "data"
VOICE = EXAMPLES / "brand-voice"
ORDERS = EXAMPLES / "order-extraction"
METHODS = EXAMPLES / "methods"
PROFILES = EXAMPLES / "profiles"
PRODUCTS = VOICE / "data" / "products.csv"
KINDS: dict[
    str,
    type[
        ComputeProfile
        | Dataset
        | Evaluation
        | FineTuneJob
        | FineTuneSchedule
        | FineTuneSweep
        | InferenceDeployment
    ],
] = {
    "ComputeProfile": ComputeProfile,
    "Dataset": Dataset,
    "Evaluation": Evaluation,
    "FineTuneJob": FineTuneJob,
    "FineTuneSchedule": FineTuneSchedule,
    "FineTuneSweep": FineTuneSweep,
    "InferenceDeployment": InferenceDeployment,
}


def manifests() -> list[tuple[str, dict[str, Any]]]:
    return [
        (str(path.relative_to(EXAMPLES)), manifest)
        for path in sorted(EXAMPLES.rglob("*.yaml"))
        for manifest in yaml.safe_load_all(path.read_text())
        if manifest["apiVersion"].startswith("finetune.dev/")
    ]


def split_of_spec(dataset: Dataset) -> Split:
    """Split settings in the config for the Dataset."""
    return Split(**dataset.spec.split.model_dump(exclude_none=True))


def strict(model: type[Model], value: Any) -> Any:
    """Parse `value`. Fail for fields that the model does not have."""
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
    assert find_unimplemented(resource.spec) == ()


def test_profiles_name_priority_classes_that_exist_and_one_default() -> None:
    objects = [
        manifest for path in PROFILES.glob("*.yaml") for manifest in yaml.safe_load_all(path.read_text())
    ]
    classes = {each["metadata"]["name"] for each in objects if each["kind"] == "PriorityClass"}
    profiles = [each for each in objects if each["kind"] == "ComputeProfile"]
    entries = [entry for each in profiles for entry in each["spec"].get("pods", ())]
    named = {entry["priorityClassName"] for entry in entries if "priorityClassName" in entry}
    defaults = [
        each["metadata"]["name"]
        for each in profiles
        if DEFAULT_PROFILE_LABEL in each["metadata"].get("annotations", {})
    ]

    assert named == classes
    assert defaults == ["cpu"]


def test_where_devices_are_cores_an_endpoint_gets_as_many_as_any_stage() -> None:
    found = {path: each["spec"] for path, each in manifests() if each["kind"] == "ComputeProfile"}
    specs = {path: ComputeProfileSpec.model_validate(each) for path, each in {**found, "demo": DEMO}.items()}
    sizes = {
        path: {stage: spec.pods_of((stage,)).resources for stage in SIZED_STAGES}
        for path, spec in specs.items()
        if spec.accelerator.resource == CPU
    }
    assert {"demo", "profiles/cpu.yaml"} <= sizes.keys()
    for path, resources in sizes.items():
        served = resources["serve"]
        if served is None:
            continue
        larger = [
            each
            for each in resources.values()
            if each and quantity_value(each.cpu) > quantity_value(served.cpu)
        ]
        assert larger == [], path


def test_the_page_lists_every_example_of_a_profile() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.yaml)\)", (PROFILES / "README.md").read_text()))

    assert listed == {path.name for path in PROFILES.glob("*.yaml")}


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
    split = replace(split_of_spec(first), group_by=None)
    rows = load_rows(FIRST / "data" / "tickets.jsonl")
    assert sum(split_of(RawRow(row), split) == "test" for row in rows) >= 30


def test_the_second_run_differs_from_the_first_in_its_name_only() -> None:
    first, second = (yaml.safe_load((folder / "finetunejob.yaml").read_text()) for folder in (FIRST, SECOND))
    assert second["metadata"]["name"] == first["metadata"]["name"] + "-v2"
    assert first["spec"] == second["spec"]


AMERICAN: Final = re.compile(
    r"colors?|colored|grays?|meters?|millimeters?|centers?|centered|tires|aluminum|fibers?|molds?|molding|licenses?"
    r"|licensed|windshields?|fenders?|curbs?|gasoline|sidewalks?|matte|catalogs?|programs?|favorites?|labors?|odors?"
    r"|vapors?|neighbors?|harbors?|honors?|humor|canceled|labeled|leveled|inches"
    r"|(?:organ|recogn|custom|minim|maxim|optim|personal|modern|real|special|apolog)iz(?:e|es|ed|er|ers|ing|ation)",
    re.IGNORECASE,
)
"""Words that the voice spells differently."""

FORBIDDEN: Final = re.compile(r"premium|solution|elevat|[!£$€]", re.IGNORECASE)
"""Parts of words, and characters, that it never uses."""

MARKS: Final = re.compile(r"[^ -~]|  ")
"""Characters that a keyboard does not have, and double spaces."""


def products() -> list[dict[str, str]]:
    with PRODUCTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Preparation, PrepareResult]:
    """The products as the stage prepares them with the settings of the example's Dataset."""
    dataset = Dataset.model_validate(yaml.safe_load((VOICE / "dataset.yaml").read_text()))
    spec = dataset.spec
    (given,) = spec.sources
    assert given.columns is not None
    preparation = Preparation(tmp_path_factory.mktemp("brand-voice"))
    source = preparation.write(PRODUCTS.name, PRODUCTS.read_bytes())
    return preparation, preparation.run(
        source,
        format=given.format,
        columns=Columns(prompt=given.columns.prompt, completion=given.columns.completion),
        split=split_of_spec(dataset),
        on_invalid_rows=spec.on_invalid_rows,
    )


def test_the_products_are_prepared_without_a_problem(prepared: tuple[Preparation, PrepareResult]) -> None:
    preparation, result = prepared
    assert result.format == "CSV"
    assert (result.problem_count, result.problems) == (0, ())
    assert result.statistics.duplicate_rows == 0
    assert result.statistics.source_rows == len(products()) >= 200
    by_prompt = {row["prompt"]: row["completion"] for row in preparation.all_rows(result)}
    assert by_prompt == {product["brief"]: product["copy"] for product in products()}
    assert len(by_prompt) == len(products())


def test_each_split_of_the_products_has_whole_ranges_and_enough_rows(
    prepared: tuple[Preparation, PrepareResult],
) -> None:
    preparation, result = prepared
    train, validation, test = (split.rows for split in result.splits)
    said = f"{train}, {validation} and {test} of {len(products())} rows"
    assert said in (VOICE / "dataset.yaml").read_text()
    assert validation >= 20
    assert test >= 30
    split_of_brief = {
        row["prompt"]: split.name for split in result.splits for row in preparation.rows(result, split.name)
    }
    splits = {(product["range"], split_of_brief[product["brief"]]) for product in products()}
    assert len(splits) == len({product["range"] for product in products()})


def test_the_brief_that_the_page_asks_with_was_never_trained_on(
    prepared: tuple[Preparation, PrepareResult],
) -> None:
    preparation, result = prepared
    (asked,) = re.findall(r'"role": "user", "content": "([^"]+)"', (VOICE / "README.md").read_text())
    assert asked in {row["prompt"] for row in preparation.rows(result, "test")}


def test_the_products_have_the_numbers_that_their_page_gives() -> None:
    page = (VOICE / "data" / "README.md").read_text()
    rows = products()
    ranges = Counter(row["range"] for row in rows)
    briefs = [len(row["brief"]) for row in rows]
    words = [len(row["copy"].split()) for row in rows]
    assert f"has {len(rows)} rows" in page
    assert f"{len(rows)} rows, no problems" in (VOICE / "README.md").read_text()
    assert f"{len(ranges)} in all with {min(ranges.values())} to {max(ranges.values())} rows each" in page
    assert f"{min(briefs)} to {max(briefs)} characters" in page
    assert f"{min(words)} to {max(words)} words" in page


def test_no_article_number_or_brief_is_there_twice() -> None:
    rows = products()
    for column in ("sku", "brief"):
        assert len({row[column].casefold() for row in rows}) == len(rows)


def misspelt(text: str) -> list[str]:
    """Words and characters that the voice does not use."""
    words = [word for word in re.findall(r"[A-Za-z]+", text) if AMERICAN.fullmatch(word)]
    return [*words, *FORBIDDEN.findall(text), *MARKS.findall(text)]


def faults(copy: str) -> list[str]:
    """The checkable rules of the voice that a description breaks."""
    sentences = len(re.findall(r'[.?]"?(?= |$)', copy))
    return [
        *misspelt(copy),
        *([] if 80 <= len(copy) <= 420 else [f"{len(copy)} characters"]),
        *([] if 1 <= sentences <= 3 and copy.endswith(".") else [f"{sentences} sentences"]),
    ]


def test_the_descriptions_keep_the_rules_of_the_voice() -> None:
    assert {row["sku"]: found for row in products() if (found := faults(row["copy"]))} == {}
    assert faults("Customize the color: our Premium  solution will elevate it!") == [
        "Customize", "color", "Premium", "solution", "elevat", "!", "  ", "59 characters", "0 sentences",
    ]  # fmt: skip


def test_the_briefs_are_spelt_as_the_voice_spells() -> None:
    assert {row["sku"]: found for row in products() if (found := misspelt(row["brief"]))} == {}


def test_few_descriptions_begin_alike() -> None:
    openings = Counter(" ".join(product["copy"].split()[:3]).casefold() for product in products())
    assert max(openings.values()) <= 4


def format_datasets() -> list[Dataset]:
    return [
        Dataset.model_validate(each) for each in yaml.safe_load_all((FORMATS / "datasets.yaml").read_text())
    ]


@pytest.mark.parametrize("dataset", format_datasets(), ids=lambda dataset: dataset.name)
def test_the_same_rows_are_prepared_from_each_format_without_a_problem(
    dataset: Dataset, tmp_path: Path
) -> None:
    preparation = Preparation(tmp_path)
    (given,) = dataset.spec.sources
    name = given.uri.rpartition("/")[2]
    source = preparation.write(name, (FORMATS / name).read_bytes())
    config = prepare_config(
        StageInputs(owner=dataset, run=RUN, store_uri="pvc://artifacts", store_credentials=None, report=None),
        {"sources[0]": given},
        dataset.spec,
    )
    asked = {field: getattr(config, field) for field in ("template", "split", "checks")}
    asked |= {field: getattr(config.sources[0], field) for field in ("format", "columns")}

    result = preparation.run(source, **asked)

    assert (result.problem_count, result.statistics.source_rows) == (0, 12)
    assert sum(split.rows for split in result.splits) == 12
    kustomization = yaml.safe_load((FORMATS / "kustomization.yaml").read_text())
    assert name in kustomization["configMapGenerator"][0]["files"]


def test_every_format_has_its_example() -> None:
    found = {dataset.name.replace("-", "").removeprefix("table") for dataset in format_datasets()}
    assert found == {name.lower() for name in get_args(DataFormat)}


def test_the_run_that_continues_leaves_the_adapters_settings_to_its_checkpoint() -> None:
    first, onwards = (
        FineTuneJob.model_validate(yaml.safe_load((folder / "finetunejob.yaml").read_text()))
        for folder in (FIRST, FIRST / "continue")
    )
    parent = onwards.spec.base_model.checkpoint
    assert parent is not None
    assert parent.startswith(f"{first.name}-")
    assert onwards.spec.method.type == first.spec.method.type
    assert onwards.spec.method.lora is None
    assert (onwards.spec.model_line, onwards.spec.dataset) == (first.spec.model_line, first.spec.dataset)


def method_examples() -> dict[str, FineTuneJob]:
    return {
        path.stem: FineTuneJob.model_validate(yaml.safe_load(path.read_text()))
        for path in sorted(METHODS.glob("*.yaml"))
        if path.stem not in ("chain", "datasets", "kustomization", "pvc")
    }


def test_the_second_run_of_the_chain_continues_from_what_the_first_one_becomes() -> None:
    documents = yaml.safe_load_all((METHODS / "chain.yaml").read_text())
    first, second = map(FineTuneJob.model_validate, documents)
    assert first.spec.base_model.uri is not None
    assert first.spec.evaluation is not None
    assert first.spec.evaluation.gates
    assert second.spec.base_model.champion is not None
    assert second.spec.base_model.uri is None
    assert (second.spec.base_model.champion.model_line, second.spec.model_line) == (
        None,
        first.spec.model_line,
    )
    assert second.spec.method.lora is None
    assert second.spec.dataset != first.spec.dataset


def test_every_objective_every_type_and_every_variant_of_lora_has_an_example() -> None:
    jobs = method_examples().values()
    adapters = [job.spec.method.lora for job in jobs if job.spec.method.lora is not None]
    methods = {(job.spec.method.objective, job.spec.method.type) for job in jobs}

    assert methods <= set(ALL_METHODS)
    for shown, known in zip(zip(*methods, strict=True), zip(*ALL_METHODS, strict=True), strict=True):
        assert set(shown) == set(known)
    assert any(objective != "SFT" and kind == "QLoRA" for objective, kind in methods)
    assert [adapter.dora for adapter in adapters].count(True) == 1
    assert [adapter.rslora for adapter in adapters].count(True) == 1


def test_generated_rows_are_only_trained_on_and_the_one_that_repeats_a_test_row_is_left_out(
    tmp_path: Path,
) -> None:
    folder = EXAMPLES / "train-only"
    dataset = Dataset.model_validate(yaml.safe_load((folder / "dataset.yaml").read_text()))
    preparation = Preparation(tmp_path)
    files = [FIRST / "data" / "tickets.jsonl", folder / "data" / "generated.csv"]
    inputs = StageInputs(
        owner=dataset, run=RUN, store_uri="pvc://artifacts", store_credentials=None, report=None
    )
    fields = {f"sources[{number}]": source for number, source in enumerate(dataset.spec.sources)}
    config = prepare_config(inputs, fields, dataset.spec)
    sources = [
        source.model_copy(update={"path": str(preparation.write(file.name, file.read_bytes()))})
        for source, file in zip(config.sources, files, strict=True)
    ]
    assert [source.uri.rpartition("/")[2] for source in sources] == [file.name for file in files]

    result = preparation.run(*sources, split=split_of_spec(dataset))
    alone = preparation.run(sources[0], split=split_of_spec(dataset))

    checked, generated = result.sources
    assert (result.problem_count, generated.format, result.statistics.leaked_rows) == (0, "CSV", 1)
    assert (generated.train, generated.validation, generated.test) == (18, 0, 0)
    assert (checked.train, checked.validation, checked.test) == tuple(split.rows for split in alone.splits)


def test_the_rows_of_every_method_are_those_that_it_learns_from(tmp_path: Path) -> None:
    from finetune_trainer.preflight.method_checks import check_method, resolve_preference

    datasets = {
        manifest["metadata"]["name"]: Dataset.model_validate(manifest)
        for manifest in yaml.safe_load_all((METHODS / "datasets.yaml").read_text())
    }
    for name, job in method_examples().items():
        assert job.name == f"library-{name}"
        assert job.spec.dataset.ref is not None
        dataset = datasets[job.spec.dataset.ref.name]
        file = METHODS / "data" / dataset.spec.sources[0].uri.rpartition("/")[2]
        folder = tmp_path / name
        folder.mkdir()
        preparation = Preparation(folder)
        result = preparation.run(
            preparation.write(file.name, file.read_bytes()), split=split_of_spec(dataset)
        )
        assert result.dataset is not None
        artifact = ArtifactRef(kind="datasets", digest=result.dataset)
        rows = load_rows(preparation.store.artifact(artifact, verify=True) / "train.jsonl")
        method = Method(objective=job.spec.method.objective, type=job.spec.method.type)
        check_method(method, rows[0].form)
        resolve_preference(method, rows)
        assert all(split.rows >= 3 for split in result.splits)
        assert result.problem_count == 0


SIZE: Final = re.compile(r"A\d|[\d.]+ (m|mm) (wide|tall|round|square)|[\d.]+ x [\d.]+ (m|mm)")


def test_every_order_follows_the_schema_of_the_run_and_the_form_of_its_page() -> None:
    job = FineTuneJob.model_validate(yaml.safe_load((ORDERS / "finetunejob.yaml").read_text()))
    assert job.spec.evaluation is not None
    assert job.spec.evaluation.options is not None
    schema = json.loads(job.spec.evaluation.options.json_schema or "")
    rows = load_rows(ORDERS / "data" / "orders.jsonl")
    orders = [json.loads(row.output) for row in rows]
    for row, order in zip(rows, orders, strict=True):
        jsonschema.validate(order, schema)
        assert list(order) == ["product", "quantity", "size", "needed_by"]
        assert row.output == json.dumps(order)
        assert re.fullmatch(
            r"[A]\d|[\d.]+ (m|mm) (wide|tall|round|square)|[\d.]+ x [\d.]+ (m|mm)", order["size"]
        )
    assert len({row.input for row in rows}) == len(rows)
    products = Counter(order["product"] for order in orders)
    page = (ORDERS / "data" / "README.md").read_text()
    assert f"has {len(rows)} rows, {min(products.values())} per product" in page
    assert set(products.values()) == {min(products.values())}
