# SPDX-License-Identifier: Apache-2.0
"""Sources and base models that pods read over the network."""

from typing import Any

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT, SOURCES_MOUNT
from finetune_trainer.contract.results import SourceResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    DATASET_UID,
    JOB,
    VERSION,
    claim,
    dataset,
    failed,
    finetunejob,
    preflighted,
    prepared,
    profile,
    trained,
)

COMMIT = "9" * 40
HUB = {"uri": "hf://google/gemma", "revision": "main", "credentialsSecretRef": {"name": "hub"}}
BUCKET = {"uri": "s3://rows/tickets.jsonl", "credentialsSecretRef": {"name": "bucket-reader"}}


def cluster_of(**job: Any) -> MemoryCluster:
    """No claim but the store's."""
    cluster = MemoryCluster(
        profile(), claim("artifacts"), dataset(sources=[BUCKET]), finetunejob(**{"baseModel": HUB, **job})
    )
    cluster.settle()
    return cluster


def at_commit() -> Any:
    result = preflighted()
    assert result.preflight is not None
    return result.model_copy(
        update={"preflight": result.preflight.model_copy(update={"base_model_revision": COMMIT})}
    )


def mounts_of(job: Manifest) -> dict[str, str]:
    """Path in the container, and the Secret that is there or the volume."""
    pod = job["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {
        mount["mountPath"]: volumes[mount["name"]].get("secret", {}).get("secretName", mount["name"])
        for mount in pod["containers"][0]["volumeMounts"]
    }


def test_a_remote_source_is_read_by_the_pod_with_its_own_secret_and_no_volume() -> None:
    cluster = cluster_of()
    config, mounts = cluster.config("prepare"), mounts_of(cluster.stage_job("prepare"))
    (source,) = config.sources
    assert (source.uri, source.path) == (BUCKET["uri"], None)
    assert source.credentials.name == mounts[source.credentials.path] == "bucket-reader"
    assert not [path for path in mounts if path.startswith(SOURCES_MOUNT)]


def test_each_source_has_its_own_secret_and_place_and_claims_are_mounted_once() -> None:
    sources = [
        {"uri": "pvc://rows/a.jsonl"},
        BUCKET,
        {"uri": "https://rows.example/b.csv", "credentialsSecretRef": {"name": "web-reader"}},
        {"uri": "pvc://artifacts/exports/c.jsonl"},
        {"uri": "pvc://rows/d-*.jsonl", "splits": "TrainOnly"},
        {"uri": "configmap://tickets/e.jsonl", "format": "ChatMessages"},
        {"uri": "https://rows.example/f.csv", "credentialsSecretRef": {"name": "web-reader"}},
        {"uri": "https://rows.example/g.csv"},
    ]
    cluster = MemoryCluster(profile(), claim("artifacts"), claim("rows"), dataset(sources=sources))
    cluster.settle()
    config, mounts = cluster.config("prepare"), mounts_of(cluster.stage_job("prepare"))

    assert [each.path for each in config.sources] == [
        "/mnt/sources/0/a.jsonl",
        None,
        None,
        "/mnt/sources/3/exports/c.jsonl",
        "/mnt/sources/4/d-*.jsonl",
        "/mnt/sources/5/e.jsonl",
        None,
        None,
    ]
    volumes = {path: name for path, name in mounts.items() if path.startswith(SOURCES_MOUNT)}
    assert volumes == {
        "/mnt/sources/0": "source-0",
        "/mnt/sources/3": "store",
        "/mnt/sources/4": "source-0",
        "/mnt/sources/5": "source-5",
    }
    secrets = [each.credentials and mounts[each.credentials.path] for each in config.sources]
    assert secrets == [None, "bucket-reader", "web-reader", None, None, None, "web-reader", None]
    assert len({each.credentials.path for each in config.sources if each.credentials}) == 3
    assert [each.field for each in config.sources] == [f"sources[{number}]" for number in range(8)]
    assert [each.splits for each in config.sources].count("TrainOnly") == 1


def test_a_claim_of_any_source_that_is_missing_is_named_with_its_field() -> None:
    sources = [{"uri": "pvc://artifacts/a.csv"}, {"uri": "pvc://gone/b.csv"}]
    cluster = MemoryCluster(profile(), claim("artifacts"), dataset(sources=sources))
    cluster.settle()

    condition = cluster.condition("Dataset", DATASET, "Reconciling")
    assert condition is not None
    assert condition["reason"] == "SourceNotFound"
    assert "PersistentVolumeClaim gone of spec.sources[1].uri (pvc://gone/b.csv)" in condition["message"]


def test_an_invalid_uri_of_any_source_is_named_with_its_field() -> None:
    sources = [{"uri": "pvc://artifacts/a.csv"}, {"uri": "configmap://rows"}]
    cluster = MemoryCluster(profile(), claim("artifacts"), dataset(sources=sources))
    cluster.settle()

    condition = cluster.condition("Dataset", DATASET, "Stalled")
    assert condition is not None
    assert condition["message"].startswith("spec.sources[1].uri: configmap://rows has no valid key")


def test_a_model_at_the_hub_is_read_at_its_revision_and_recorded_at_its_commit() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    config, mounts = cluster.config("preflight"), mounts_of(cluster.stage_job("preflight"))
    assert (config.base_model_uri, config.base_model_revision) == ("hf://google/gemma", "main")
    assert config.base_model_credentials.name == mounts[config.base_model_credentials.path] == "hub"
    assert BASE_MODEL_MOUNT not in mounts

    cluster.succeed("preflight", at_commit(), after=5)
    cluster.settle()
    cluster.succeed("train", trained(), after=5)
    cluster.settle()

    assert cluster.job(JOB).status.resolved.base_model_revision == COMMIT
    lineage = cluster.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]
    assert lineage["baseModel"]["uri"] == "hf://google/gemma"
    assert lineage["baseModel"]["revision"] == COMMIT


def test_later_stages_have_no_credentials_of_what_was_read() -> None:
    cluster = cluster_of()
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    assert "bucket-reader" not in mounts_of(cluster.stage_job("preflight")).values()
    cluster.succeed("preflight", at_commit(), after=5)
    cluster.settle()
    assert not {"hub", "bucket-reader"} & set(mounts_of(cluster.stage_job("train")).values())


def test_a_version_records_where_its_rows_came_from_without_a_signature() -> None:
    cluster = MemoryCluster(
        profile(),
        claim("artifacts"),
        dataset(
            sources=[
                {"uri": "https://rows.example/a.jsonl?signature=secret"},
                {"uri": "hf://datasets/team/tickets", "splits": "TrainOnly"},
            ]
        ),
    )
    cluster.settle()
    found = (
        SourceResult(format="CSV", train=6, validation=1, test=2),
        SourceResult(format="Alpaca", revision=COMMIT, train=3),
    )
    cluster.succeed("prepare", prepared(sources=found), after=5)
    cluster.settle()
    assert cluster.objects["DatasetVersion", VERSION]["spec"]["sources"] == [
        {
            "uri": "https://rows.example/a.jsonl",
            "format": "CSV",
            "splits": "All",
            "train": 6,
            "validation": 1,
            "test": 2,
        },
        {
            "uri": "hf://datasets/team/tickets",
            "revision": COMMIT,
            "format": "Alpaca",
            "splits": "TrainOnly",
            "train": 3,
            "validation": 0,
            "test": 0,
        },
    ]


def test_a_refusal_of_the_server_is_tried_again_after_the_secret_was_corrected() -> None:
    cluster = cluster_of()
    message = "source s3://rows/tickets.jsonl: status 403; correct Secret bucket-reader"
    result = failed("prepare", "AccessDenied", message, run=f"{DATASET_UID}-1")
    cluster.end("prepare", result.to_json(), exit_code=10, after=5)
    cluster.settle()
    condition = cluster.condition("Dataset", DATASET, "Reconciling")
    assert condition is not None
    assert condition["reason"] == "AccessDenied"
    assert message in condition["message"]
    assert "next attempt at " in condition["message"]
