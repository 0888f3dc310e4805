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
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.devices import Devices
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.manifests import revisionhash
from finetune_operator.manifests.revision import build_revision
from finetune_operator.manifests.weightsreference import WeightsReference
from finetune_operator.reconcile.finetunejob.identity import mark
from finetune_trainer.contract.configs.anyconfig import CONFIG_ADAPTER
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.prepare.recipe import preparation_digest, recipe_of
from finetune_trainer.train.states.ledger import Fingerprint, RunLedger
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
    "devices": {"resource": "nvidia.com/gpu", "max": 8},
    "nodeSelector": {"nvidia.com/gpu.product": "L4"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "runtimeClassName": "nvidia",
    "priorityClasses": {"serve": "online"},
    "images": {"trainer": "registry.example/trainer@sha256:" + "4" * 64},
    "resources": {"serve": {"cpu": "2", "memory": "16Gi", "ephemeralStorage": "20Gi"}},
}

REVISIONS: list[tuple[str, dict[str, Any], dict[str, Any], tuple[tuple[str, WeightsReference], ...], str]] = [
    ("a profile that says nothing", {}, {}, (("tone", RECORDED),), "desk-dd3fdb76"),
    ("two models, one of them pinned", {}, {}, (("tone", RECORDED), ("pin", PINNED)), "desk-2152e51b"),
    (
        "a GPU profile with all settings",
        GPU,
        {"compute": {"devices": 2}},
        (("tone", RECORDED),),
        "desk-03b13ca8",
    ),
    (
        "all weights, from a bucket",
        {"devices": {"resource": "cpu", "max": 4}},
        {},
        (("tone", FULL),),
        "desk-abbe0d69",
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


class LaterDevices(Devices):
    """A class of a later release that adds a field."""

    sharing: str | None = None


@pytest.mark.parametrize(("sharing", "same"), [(None, True), ("time-slicing", False)])
def test_a_field_that_comes_later_enters_the_name_only_when_set(
    monkeypatch: pytest.MonkeyPatch, sharing: str | None, same: bool
) -> None:
    always: dict[Any, Any] = {**revisionhash.ALWAYS, LaterDevices: revisionhash.ALWAYS[Devices]}
    monkeypatch.setattr(revisionhash, "ALWAYS", always)
    made = ComputeProfile.model_validate({"kind": "ComputeProfile", "metadata": {"name": "standard"}})
    spec = made.spec.model_copy(update={"devices": LaterDevices(sharing=sharing)})
    later = made.model_copy(update={"spec": spec})
    models = (("tone", RECORDED),)

    name = build_revision(endpoint(), digest("b"), models, later, "pvc://artifacts").name

    assert (name == REVISIONS[0][-1]) is same


RUNS: list[tuple[str, dict[str, Any], str]] = [
    ("a small run", {"dataset": {"ref": {"name": "rows"}}}, "0f0f.1346a20ec9eb25b0"),
    (
        "a run with many settings",
        {
            "dataset": {"inline": {"source": {"uri": "pvc://rows/a.csv"}, "split": {"seed": 3}}},
            "method": {"type": "DPO", "lora": {"r": 8, "alpha": 16}, "preference": {"beta": 0.2}},
            "hyperparameters": {"epochs": 2, "learningRate": 0.0002, "perDeviceBatchSize": 4},
            "compute": {"devices": 2, "nodes": 2, "stepTimeoutSeconds": 600},
            "checkpoints": {"everySteps": 10, "keep": 2, "keepSteps": [10, 20]},
            "evaluation": {"gates": [{"metric": "exact_match", "min": 0.8}]},
            "suspend": False,
        },
        "0f0f.c42d2766719c5e04",
    ),
]


@pytest.mark.parametrize(("spec", "expected"), [case[1:] for case in RUNS], ids=[case[0] for case in RUNS])
def test_runs_keep_their_fingerprints(spec: dict[str, Any], expected: str) -> None:
    base = {"model": "tone", "baseModel": {"uri": "pvc://models/gemma"}}
    metadata = {"name": "tone-1", "namespace": "team", "uid": "0f0f"}
    job = FineTuneJob.model_validate({"kind": "FineTuneJob", "metadata": metadata, "spec": {**base, **spec}})

    assert mark(job) == expected


PREPARATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("the defaults", {}, "sha256:8f83205700a7b63136b8e116f0819032cf6672ada9316cce1af31193e3e107f8"),
    (
        "many settings",
        {
            "format": "CSV",
            "columns": {"prompt": "question", "completion": "answer"},
            "cleaning": {"normalizeWhitespace": True, "nearDuplicates": "Remove"},
            "checks": {"emailAddresses": "Redact", "phoneNumbers": "Warn", "phoneRegion": "DE"},
            "split": {"validation": 0.2, "test": 0.05, "seed": 7, "groupBy": "customer"},
            "onInvalidRows": "Drop",
            "maxInvalidFraction": 0.1,
        },
        "sha256:272be40547733d71fdbf862eaa3252efcb4f880f16c716fb8566abe1d1815ca7",
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
        "sourceUri": "pvc://rows",
    }
    config = CONFIG_ADAPTER.validate_python({**message, **settings})
    assert isinstance(config, PrepareConfig)

    assert preparation_digest(config, recipe_of(config), "CSV") == expected


HYPERPARAMETERS = {
    "epochs": 2,
    "learningRate": 0.0002,
    "perDeviceBatchSize": 4,
    "gradientAccumulationSteps": 1,
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
        "type": "KTO",
        "lora": {"r": 8, "alpha": 32, "dropout": 0.05, "target_modules": [], "rslora": False, "dora": False},
        "preference": {"beta": 0.2, "desirable_weight": None, "undesirable_weight": None},
    },
    "hyperparameters": {
        "epochs": 2,
        "learning_rate": 0.0002,
        "per_device_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_sequence_length": 256,
        "seed": 0,
        "total_steps": 40,
        "save_every_steps": 10,
        "early_stopping_patience": None,
        "gradient_checkpointing": False,
        "processes": 1,
        "max_batch_tokens": None,
        "validate_every_steps": None,
        "on_long_rows": None,
        "sharded": None,
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
            "method": {"type": "KTO", "lora": {"r": 8}, "preference": {"beta": 0.2}},
            "hyperparameters": HYPERPARAMETERS,
        }
    )
    assert isinstance(config, TrainConfig)
    fingerprint = Fingerprint.of(config)

    assert json.loads(RunLedger(fingerprint=fingerprint).model_dump_json())["fingerprint"] == FINGERPRINT
    assert Fingerprint.model_validate(FINGERPRINT) == fingerprint

    thinking = Fingerprint.of(config.model_copy(update={"chat_template_kwargs": {"enable_thinking": False}}))
    assert thinking.differences(fingerprint) == ["chat_template_kwargs {} → {'enable_thinking': False}"]
    assert Fingerprint.model_validate_json(thinking.model_dump_json()) == thinking
