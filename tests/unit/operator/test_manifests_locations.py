# SPDX-License-Identifier: Apache-2.0
"""URIs of claims and ConfigMaps."""

import re

import pytest

from finetune_operator.manifests.volumes import Location, parse_location, parse_source, store_folder


@pytest.mark.parametrize(
    ("uri", "location", "path"),
    [
        ("pvc://artifacts", Location("pvc", "artifacts", ""), "/mnt"),
        ("pvc://artifacts/", Location("pvc", "artifacts", ""), "/mnt"),
        ("pvc://models/gemma//3", Location("pvc", "models", "gemma/3"), "/mnt/gemma/3"),
        ("configmap://tickets/rows.jsonl", Location("configmap", "tickets", "rows.jsonl"), "/mnt/rows.jsonl"),
        ("configmap://tickets/*.jsonl", Location("configmap", "tickets", "*.jsonl"), "/mnt/*.jsonl"),
        ("pvc://data/2030/rows-*.gz", Location("pvc", "data", "2030/rows-*.gz"), "/mnt/2030/rows-*.gz"),
    ],
)
def test_a_uri_is_an_object_and_a_path_in_it(uri: str, location: Location, path: str) -> None:
    assert parse_location(uri) == location
    assert parse_location(uri).under("/mnt") == path


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("pvc://", "is not a valid name of a Kubernetes object: write pvc://CLAIM"),
        ("pvc://Upper/x", "is not a valid name of a Kubernetes object"),
        ("pvc://claim/../etc", "has .. in its path"),
        ("configmap://tickets", "has no valid key of a ConfigMap: write configmap://NAME/KEY"),
        ("configmap://tickets/a/b", "has no valid key of a ConfigMap"),
        ("configmap://tickets/..", "has no valid key of a ConfigMap"),
        ("pvc://claim/*/rows.jsonl", "has a * in a folder name: only the last part of the path may be"),
        ("s3://bucket/rows", "use pvc:// or configmap://"),
    ],
)
def test_a_uri_that_cannot_be_mounted_says_how_it_should_look(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(uri)) as caught:
        parse_location(uri)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://google/gemma-3-270m",
        "hf://datasets/team/tickets/rows.jsonl",
        "hf://datasets/team/tickets@refs/pr/1/rows.jsonl",
        "s3://bucket",
        "s3://bucket/rows.jsonl",
        "gs://bucket/rows/",
        "s3://bucket/2030/rows-*.jsonl.zst",
        "hf://datasets/team/tickets/data/train-*.parquet",
        "https://data.example.com/*/rows.csv",
        "gs://bucket/rows-202?.csv",
        "abfs://rows@account.dfs.core.windows.net/2030",
        "https://data.example.com:8443/rows.csv?signature=a%2Fb",
    ],
)
def test_what_is_read_over_the_network_needs_no_volume(uri: str) -> None:
    assert parse_source(uri) is None


@pytest.mark.parametrize(
    ("uri", "shape"),
    [
        ("hf://gemma", "hf://ORG/NAME"),
        ("s3:///rows", "s3://BUCKET/PATH"),
        ("s3://bucket/../other", "s3://BUCKET/PATH"),
        ("s3://bucket/a?/rows.jsonl", "s3://BUCKET/PATH"),
        ("s3://bucket?region=eu", "s3://BUCKET/PATH"),
        ("s3://bucket/*/rows.jsonl", "only the last part of the path may be a pattern"),
        ("hf://datasets/team/tickets/*/rows.jsonl", "only the last part of the path may be a pattern"),
        ("https://data.example.com", "https://HOST/PATH"),
        ("https://me:secret@data.example.com/rows", "with the user's name and password in a Secret"),
        ("ftp://data.example.com/rows", "use pvc:// or configmap://"),
    ],
)
def test_a_uri_without_a_place_says_how_it_should_look(uri: str, shape: str) -> None:
    with pytest.raises(ValueError, match=re.escape(shape)):
        parse_source(uri)


def test_a_stored_artifact_is_named_by_its_digits() -> None:
    assert (
        store_folder("pvc://artifacts/", "checkpoints", "sha256:ab12") == "pvc://artifacts/checkpoints/ab12"
    )
