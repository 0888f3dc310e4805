# SPDX-License-Identifier: Apache-2.0
"""Which parts of a Dataset's spec reach its prepare pod, and which of the result its DatasetVersion."""

from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_operator.api.dataset import Dataset
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.manifests.stageinputs import StageInputs
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.results import DataStatistics
from tests.unit.operator.runobjects import DATASET_UID, VERSION, dataset, digest, prepared

EVERYTHING: dict[str, Any] = {
    "source": {"uri": "pvc://data/rows-*.csv", "credentialsSecretRef": {"name": "rows"}},
    "format": "KTO",
    "columns": {
        "prompt": "a",
        "completion": "b",
        "messages": "c",
        "chosen": "d",
        "rejected": "e",
        "label": "f",
    },
    "template": "{subject}\n{body}",
    "cleaning": {
        "normalizeWhitespace": True,
        "normalizeUnicode": True,
        "nearDuplicates": "Remove",
        "maxRowsForNearDuplicates": 7,
    },
    "checks": {
        "secrets": "Fail",
        "emailAddresses": "Redact",
        "paymentCards": "Off",
        "ibans": "Fail",
        "phoneNumbers": "Warn",
        "phoneRegion": "DE",
    },
    "split": {
        "validation": 0.3,
        "test": 0.2,
        "seed": 5,
        "groupBy": "customer",
        "column": "part",
        "fromFiles": True,
    },
    "keepColumns": ["language", "customer"],
    "onInvalidRows": "Drop",
    "maxInvalidFraction": 0.25,
    "maxUnpackedBytes": 5 << 30,
}
"""More fields than a Dataset may set together, so that the test follows each of them."""


def owner(**spec: Any) -> Dataset:
    manifest = dataset(**spec)
    manifest["metadata"]["namespace"] = "team"
    return Dataset.model_validate(manifest)


def config_of(**spec: Any) -> PrepareConfig:
    resource = owner(**spec)
    return prepare_config(StageInputs(resource, DATASET_UID, "pvc://artifacts", None), resource.spec)


def test_everything_that_decides_the_rows_is_passed_on() -> None:
    sent = config_of(**EVERYTHING).to_dict()
    for field in ("format", "columns", "template", "cleaning", "checks", "split", "keepColumns"):
        assert sent[field] == EVERYTHING[field]
    assert (sent["onInvalidRows"], sent["maxInvalidFraction"]) == ("Drop", 0.25)
    assert sent["maxUnpackedBytes"] == 5 << 30


def test_a_field_that_decides_the_rows_cannot_be_forgotten() -> None:
    named = {field.alias for field in PrepareConfig.model_fields.values()}
    common = {"accelerators", "contract", "stage", "owner", "run", "store", "report", "nonce"}
    technical = common | {"sourceUri", "sourcePath", "ruleVersion"}
    left = named - technical - {"sourceCredentials", "previous", "unlessVersion"}
    assert left == set(EVERYTHING) - {"source"}
    for model, field in (
        (Columns, "columns"),
        (Cleaning, "cleaning"),
        (Checks, "checks"),
        (Split, "split"),
    ):
        assert {to_camel(each.name) for each in fields(model)} == set(EVERYTHING[field])


@pytest.mark.parametrize("part", ["columns", "cleaning", "checks", "split"])
def test_a_setting_that_the_trainer_does_not_know_is_refused(part: str) -> None:
    sent = config_of(**EVERYTHING).to_dict()
    sent[part]["new"] = True

    with pytest.raises(ValidationError, match=f"{part}.new"):
        PrepareConfig.model_validate(sent)


def test_settings_are_read_as_they_were_sent() -> None:
    config = config_of(**EVERYTHING)

    assert PrepareConfig.model_validate_json(config.to_json()) == config


def test_what_the_spec_leaves_out_is_left_to_the_contracts_defaults() -> None:
    sent = config_of().to_dict()
    optional = {"format", "columns", "template", "cleaning", "checks", "split", "maxUnpackedBytes"}
    assert optional.isdisjoint(sent)
    part_of_it = config_of(cleaning={"normalizeUnicode": True}, checks={"phoneNumbers": "Warn"})
    assert part_of_it.cleaning == Cleaning(normalize_unicode=True)
    assert part_of_it.checks == Checks(phone_numbers="Warn")


def test_a_pattern_is_looked_for_in_the_mounted_folder() -> None:
    assert (
        config_of(source={"uri": "pvc://data/2030/rows-*.csv"}).source_path == "/mnt/source/2030/rows-*.csv"
    )
    assert config_of(source={"uri": "configmap://rows/*.jsonl"}).source_path == "/mnt/source/*.jsonl"
    assert config_of(source={"uri": "s3://bucket/rows-*.csv"}).source_path is None


def record_of(source: str, **result: Any) -> Any:
    made = prepared(**result).prepare
    assert made is not None
    return build_dataset_version(
        owner(),
        VERSION,
        made,
        source=source,
        store="pvc://artifacts",
        store_credentials=None,
        deletion_policy="Retain",
    )["spec"]


def test_a_version_has_all_counts_of_its_preparation() -> None:
    counts = DataStatistics(
        source_rows=9,
        invalid_rows=1,
        duplicate_rows=2,
        near_duplicate_rows=3,
        leaked_rows=4,
        conflicting_rows=5,
        prompt_characters_mean=6.5,
        prompt_characters_max=7,
        completion_characters_mean=8.5,
        completion_characters_max=9,
        distinct_completions=10,
        untested_answers=11,
    )
    assert record_of("pvc://data/a", statistics=counts)["statistics"] == counts.to_dict()
    complete = counts.model_copy(update={"untested_answers": 0})
    assert "untestedAnswers" not in record_of("pvc://data/a", statistics=complete)["statistics"]


def test_a_version_says_where_its_rows_are_from_with_its_pattern_and_without_a_signature() -> None:
    assert record_of("pvc://data/rows-?.jsonl")["source"]["uri"] == "pvc://data/rows-?.jsonl"
    assert record_of("https://rows.example/a?signature=x")["source"]["uri"] == "https://rows.example/a"


def test_a_version_says_which_rows_are_together() -> None:
    assert record_of("pvc://data/a", group_by="customer")["groupBy"] == "customer"
    assert "groupBy" not in record_of("pvc://data/a")


def test_a_version_is_compared_by_digest() -> None:
    inputs = StageInputs(owner(), DATASET_UID, "pvc://artifacts", None)
    config = prepare_config(inputs, owner().spec, previous=digest("a"), unless_version="etag-1")
    assert (config.previous, config.unless_version) == (digest("a"), "etag-1")
