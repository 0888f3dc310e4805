# SPDX-License-Identifier: Apache-2.0
"""Names and digests that objects carry from the commit in `tests/zerocommit` on. No release computes others.

A change after that commit rolls endpoints, trains runs again, prepares Datasets again, or makes a training
begin anew; a new setting must enter only where it is set.
"""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.api.checkpoint import BaseModelRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.revision import build_revision
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.reconcile.finetunejob.identity import mark
from finetune_trainer.contract.configs import CONFIG_ADAPTER, PrepareConfig, TrainConfig
from finetune_trainer.contract.hyperparameters import StepDivision
from finetune_trainer.prepare.recipe import preparation_digest, recipes_of
from tests.unit.operator.endpoints import endpoint

OWNER = {"kind": "FineTuneJob", "namespace": "team", "name": "tone", "uid": "0f0f"}
STORE = {"uri": "pvc://artifacts"}


def digest(character: str) -> str:
    return "sha256:" + character * 64


BASE = BaseModelRecord(uri="pvc://models/base", digest=digest("b"))
RECORDED = WeightsReference(
    f"pvc://artifacts/checkpoints/{'1' * 64}", digest("1"), "Adapter", checkpoint="one", base_model=BASE
)
PINNED = WeightsReference(f"pvc://artifacts/checkpoints/{'2' * 64}", digest("2"), "Adapter")
FULL = WeightsReference(
    f"s3://bucket/checkpoints/{'3' * 64}", digest("3"), "Full", checkpoint="three", credentials="opens"
)

GPU: dict[str, Any] = {
    "accelerator": {"resource": "nvidia.com/gpu", "maxPerPod": 8},
    "images": {"trainer": "registry.example/trainer@sha256:" + "4" * 64},
    "pods": [
        {
            "stages": ["serve"],
            "nodeSelector": {"nvidia.com/gpu.product": "L4"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "runtimeClassName": "nvidia",
            "priorityClassName": "online",
            "resources": {"cpu": "2", "memory": "16Gi", "ephemeralStorage": "20Gi"},
        }
    ],
}

REVISIONS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[tuple[str, WeightsReference], ...], str]] = [
    ("a profile that says nothing", {}, {}, (("tone", RECORDED),), "desk-ac7eaf40"),
    ("two models, one of them pinned", {}, {}, (("tone", RECORDED), ("pin", PINNED)), "desk-fa690348"),
    (
        "a GPU profile with all settings",
        GPU,
        {"compute": {"devices": 2}},
        (("tone", RECORDED),),
        "desk-c3c35689",
    ),
    (
        "all weights, from a bucket",
        {"accelerator": {"resource": "cpu", "maxPerPod": 4}},
        {},
        (("tone", FULL),),
        "desk-e0854eb7",
    ),
]


@pytest.mark.parametrize(
    ("profile", "spec", "models", "name"),
    [case[1:] for case in REVISIONS],
    ids=[case[0] for case in REVISIONS],
)
def test_revisions_keep_their_names(
    profile: dict[str, Any], spec: dict[str, Any], models: tuple[tuple[str, WeightsReference], ...], name: str
) -> None:
    made = ComputeProfile.model_validate(
        {"kind": "ComputeProfile", "metadata": {"name": "standard"}, "spec": profile}
    )

    assert build_revision(endpoint(**spec), digest("b"), models, made, "pvc://artifacts").name == name


@pytest.mark.parametrize(("arguments", "same"), [({}, True), ({"enable_thinking": False}, False)])
def test_template_arguments_enter_the_name_only_when_set(arguments: dict[str, Any], same: bool) -> None:
    made = ComputeProfile.model_validate(
        {"kind": "ComputeProfile", "metadata": {"name": "standard"}, "spec": {}}
    )
    models = (("tone", replace(RECORDED, chat_template_kwargs=arguments)),)

    name = build_revision(endpoint(), digest("b"), models, made, "pvc://artifacts").name

    assert (name == REVISIONS[0][-1]) is same


@pytest.mark.parametrize(
    ("written", "pods"),
    [
        ([{"labels": {"team": "a"}}], []),
        ([{"stages": ["train"], "nodeSelector": {"pool": "gpu"}}], []),
        ([{"tolerations": [{"key": "gpu", "operator": "Equal"}]}], [{"tolerations": [{"key": "gpu"}]}]),
    ],
    ids=["a field that is not hashed", "an entry for other pods", "a default that is written out"],
)
def test_a_field_of_the_pods_enters_the_name_only_if_it_sets_something(
    written: list[dict[str, Any]], pods: list[dict[str, Any]]
) -> None:
    """So a field that a later release adds changes no name."""
    names = {
        build_revision(endpoint(), digest("b"), (("tone", RECORDED),), made, "pvc://artifacts").name
        for made in (
            ComputeProfile.model_validate(
                {"kind": "ComputeProfile", "metadata": {"name": "standard"}, "spec": {"pods": each}}
            )
            for each in (written, pods)
        )
    }

    assert len(names) == 1


RUNS: list[tuple[str, dict[str, Any], str]] = [
    ("a small run", {"dataset": {"ref": {"name": "rows"}}}, "0f0f.b07abb1cbc774202"),
    (
        "a run with many settings",
        {
            "dataset": {"source": {"uri": "pvc://rows/a.csv"}, "format": "CSV"},
            "method": {"objective": "DPO", "lora": {"r": 8, "alpha": 16}, "preference": {"beta": 0.2}},
            "hyperparameters": {"epochs": 2, "learningRate": 0.0002, "batchSize": 4},
            "compute": {"devices": 2, "nodes": 2, "stepTimeoutSeconds": 600},
            "checkpoints": {"stateEverySteps": 10, "keep": 2, "keepSteps": [10, 20]},
            "evaluation": {"gates": [{"metric": "exact_match", "min": 0.8}]},
            "suspend": False,
            "cancel": True,
        },
        "0f0f.4d2a050f017f0692",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_runs_keep_their_fingerprints(spec: dict[str, Any], expected: str) -> None:
    base = {"modelLine": "tone", "baseModel": {"uri": "pvc://models/gemma"}}
    metadata = {"name": "tone-1", "namespace": "team", "uid": "0f0f"}
    job = FineTuneJob.model_validate({"kind": "FineTuneJob", "metadata": metadata, "spec": {**base, **spec}})

    assert mark(job) == expected


PREPARATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("the defaults", {}, "sha256:7e05eafa558e7d8e255b48b97377f96674c375cf712d2238bdcd7c9d9bddbc0f"),
    (
        "many settings",
        {
            "sources": [
                {
                    "uri": "pvc://rows",
                    "format": "CSV",
                    "columns": {"prompt": "question", "completion": "answer"},
                    "splits": "TrainOnly",
                }
            ],
            "cleaning": {"normalizeWhitespace": True, "nearDuplicates": "Remove"},
            "checks": {"emailAddresses": "Redact", "phoneNumbers": "Warn", "phoneRegion": "DE"},
            "split": {"validation": 0.2, "test": 0.05, "seed": 7, "groupBy": "customer"},
            "onInvalidRows": "Drop",
            "maxInvalidFraction": 0.1,
        },
        "sha256:3063b8316caf3ee6d5a2c73706ca520694742c0efc3ec114d8609afcd138c99e",
    ),
]


@pytest.mark.parametrize(
    ("settings", "expected"), [case[1:] for case in PREPARATIONS], ids=[case[0] for case in PREPARATIONS]
)
def test_preparations_keep_their_digests(settings: dict[str, Any], expected: str) -> None:
    message = {
        "contract": 2,
        "stage": "prepare",
        "owner": OWNER,
        "run": "r",
        "store": STORE,
        "sources": [{"uri": "pvc://rows"}],
    }
    config = CONFIG_ADAPTER.validate_python({**message, **settings})
    assert isinstance(config, PrepareConfig)

    assert preparation_digest(config, recipes_of(config), ["CSV"]) == expected


HYPERPARAMETERS = {
    "epochs": 2,
    "learningRate": 0.0002,
    "batchSize": 4,
    "warmupRatio": 0.05,
    "scheduler": "Linear",
    "weightDecay": 0,
    "maxSequenceLength": 256,
    "seed": 0,
    "totalSteps": 40,
    "saveEverySteps": 10,
}
FINGERPRINT: dict[str, Any] = {
    "base_model": "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "parent": "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
    "dataset": "sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd",
    "method": {
        "objective": "KTO",
        "type": "LoRA",
        "lora": {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": [], "rslora": False, "dora": False},
        "preference": {"beta": 0.2},
    },
    "hyperparameters": {
        "epochs": 2,
        "learning_rate": 0.0002,
        "batch_size": 4,
        "max_sequence_length": 256,
        "seed": 0,
        "total_steps": 40,
        "save_every_steps": 10,
        "warmup_ratio": 0.05,
        "scheduler": "Linear",
        "weight_decay": 0,
        "gradient_checkpointing": False,
    },
    "chat_template_kwargs": {},
}


def test_the_resume_ledger_keeps_its_fingerprint() -> None:
    config = CONFIG_ADAPTER.validate_python(
        {
            "contract": 2,
            "stage": "train",
            "owner": OWNER,
            "run": "r",
            "store": STORE,
            "baseModel": digest("b"),
            "dataset": digest("d"),
            "parent": {"name": "before", "digest": digest("c")},
            "method": {"objective": "KTO", "lora": {"r": 8}, "preference": {"beta": 0.2}},
            "hyperparameters": HYPERPARAMETERS,
        }
    )
    assert isinstance(config, TrainConfig)
    from finetune_trainer.train.states.ledger import Fingerprint, RunLedger

    fingerprint = Fingerprint.of(config)

    assert (
        json.loads(RunLedger(fingerprint=fingerprint, division=StepDivision()).model_dump_json())[
            "fingerprint"
        ]
        == FINGERPRINT
    )
    assert Fingerprint.model_validate(FINGERPRINT) == fingerprint

    thinking = Fingerprint.of(config.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}}))
    assert thinking.differences(fingerprint) == ["chat_template_kwargs {} → {'enable_thinking': False}"]
    assert Fingerprint.model_validate_json(thinking.model_dump_json()) == thinking


def test_a_run_with_rows_left_out_for_its_evaluation_has_them_in_its_fingerprint() -> None:
    common = {"owner": OWNER, "run": "r", "store": STORE, "hyperparameters": HYPERPARAMETERS}
    config = TrainConfig.model_validate({**common, "baseModel": digest("b"), "dataset": digest("d")})
    from finetune_trainer.train.states.ledger import Fingerprint

    alone = Fingerprint.of(config)

    held_out = Fingerprint.of(config.model_copy(update={"test_dataset": digest("e")}))
    own = Fingerprint.of(config.model_copy(update={"test_dataset": digest("d")}))

    assert held_out.differences(alone) == [
        f"test_dataset None → {digest('e')}",
        "test_split None → test",
    ]
    assert own.differences(alone) == []
