# SPDX-License-Identifier: Apache-2.0
"""Which parts of a Dataset's spec reach its prepare pod, and which of the result its DatasetVersion."""

from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from finetune_operator.api.dataset import Dataset, RowSource
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.records import build_dataset_version
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.reconcile.dataset.source_check import sources_of
from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.results import DataStatistics
from tests.unit.operator.runobjects import DATASET_UID, VERSION, dataset, digest, prepared

EVERYTHING: dict[str, Any] = {
    "sources": [
        {
            "uri": "pvc://data/rows-*.csv",
            "credentialsSecretRef": {"name": "rows"},
            "format": "KTO",
            "columns": {
                "prompt": "a",
                "completion": "b",
                "messages": "c",
                "chosen": "d",
                "rejected": "e",
                "label": "f",
            },
            "splits": "TrainOnly",
        }
    ],
    "template": "{subject}\n{body}",
    "cleaning": {
        "normalizeWhitespace": True,
        "normalizeUnicode": True,
        "nearDuplicates": "Remove",
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
}
"""More fields than a Dataset may set together, so that the test follows each of them."""


def owner(**spec: Any) -> Dataset:
    manifest = dataset(**spec)
    manifest["metadata"]["namespace"] = "team"
    return Dataset.model_validate(manifest)


def config_of(**spec: Any) -> PrepareConfig:
    resource = owner(**spec)
    inputs = StageInputs(resource, DATASET_UID, "pvc://artifacts", None, max_unpacked_bytes=5 << 30)
    return prepare_config(inputs, dict(sources_of(resource)), resource.spec)


def test_everything_that_decides_the_rows_is_passed_on() -> None:
    sent = config_of(**EVERYTHING).to_dict()
    for field in ("template", "cleaning", "checks", "split", "keepColumns"):
        assert sent[field] == EVERYTHING[field]
    assert (sent["onInvalidRows"], sent["maxInvalidFraction"]) == ("Drop", 0.25)
    (source,), (given,) = sent["sources"], EVERYTHING["sources"]
    for field in ("uri", "format", "columns", "splits"):
        assert source[field] == given[field]
    assert source["credentials"]["name"] == "rows"


def test_a_field_that_decides_the_rows_cannot_be_forgotten() -> None:
    named = {field.alias for field in PrepareConfig.model_fields.values()}
    common = {"accelerators", "contract", "stage", "owner", "run", "store", "report", "nonce"}
    # The ComputeProfile limits the size of unpacked files. A Dataset keeps the rules of its first version.
    decided_elsewhere = {"previous", "previousSources", "maxUnpackedBytes", "ruleVersion"}
    assert named - common - decided_elsewhere == set(EVERYTHING)
    of_source = {field.alias for field in SourceConfig.model_fields.values()}
    technical = {"field", "path", "knownVersion"}
    assert of_source - technical - {"credentials"} == set(EVERYTHING["sources"][0]) - {"credentialsSecretRef"}
    for model, field in (
        (Cleaning, "cleaning"),
        (Checks, "checks"),
        (Split, "split"),
    ):
        assert {to_camel(each.name) for each in fields(model)} == set(EVERYTHING[field])
    assert {each.name for each in fields(Columns)} == set(EVERYTHING["sources"][0]["columns"])


@pytest.mark.parametrize("part", ["cleaning", "checks", "split"])
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
    assert {"template", "cleaning", "checks", "split"}.isdisjoint(sent)
    assert {"format", "columns", "splits"}.isdisjoint(sent["sources"][0])
    part_of_it = config_of(cleaning={"normalizeUnicode": True}, checks={"phoneNumbers": "Warn"})
    assert part_of_it.cleaning == Cleaning(normalize_unicode=True)
    assert part_of_it.checks == Checks(phone_numbers="Warn")


def test_a_pattern_is_looked_for_in_the_mounted_folder() -> None:
    uris = ("pvc://data/2030/rows-*.csv", "configmap://rows/*.jsonl", "s3://bucket/rows-*.csv")
    config = config_of(sources=[{"uri": uri} for uri in uris])

    paths = ["/mnt/sources/0/2030/rows-*.csv", "/mnt/sources/1/*.jsonl", None]
    assert [source.path for source in config.sources] == paths


def record_of(source: str, **result: Any) -> Any:
    made = prepared(**result).prepare
    assert made is not None
    return build_dataset_version(
        owner(),
        VERSION,
        made,
        sources=[RowSource(uri=source)],
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
    assert record_of("pvc://data/rows-?.jsonl")["sources"][0]["uri"] == "pvc://data/rows-?.jsonl"
    assert record_of("https://rows.example/a?signature=x")["sources"][0]["uri"] == "https://rows.example/a"


def test_a_version_says_which_rows_are_together() -> None:
    assert record_of("pvc://data/a", group_by="customer")["groupBy"] == "customer"
    assert "groupBy" not in record_of("pvc://data/a")


def test_a_version_is_compared_by_digest() -> None:
    inputs = StageInputs(owner(), DATASET_UID, "pvc://artifacts", None)
    config = prepare_config(
        inputs, dict(sources_of(owner())), owner().spec, previous=digest("a"), known_versions=["etag-1"]
    )
    assert (config.previous, config.sources[0].known_version) == (digest("a"), "etag-1")
