# SPDX-License-Identifier: Apache-2.0
"""A new feature of an evaluation is a module with a row: its field reaches the config of its stages, its pods
mount what it needs, and it may refuse an evaluation.

The feature gives evaluate pods a glossary for the column that `sliceBy` names.
"""

import json
from typing import Any, Final

import pytest

from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.manifests import configs
from finetune_operator.manifests.volumes import NO_VOLUMES, Volumes, config_map_source, one_volume
from finetune_operator.reconcile.features import registry
from finetune_operator.reconcile.features.feature import EvaluationFeature, FeatureUse, Permission
from finetune_operator.reconcile.passes import Blocked
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB
from tests.unit.operator.runsteps import reached, started


class Glossary(Contract):
    """The file with the terms of a column."""

    column: str
    path: str


class ConfigWithGlossaries(EvaluateConfig):
    """The config of evaluate with the field of the feature."""

    glossaries: tuple[Glossary, ...] = ()


def glossaries_of(use: FeatureUse) -> tuple[Glossary, ...]:
    column = use.settings.slice_by
    return () if column is None else (Glossary(column=column, path="/mnt/glossary"),)


def volumes_of(settings: EvaluationSettings) -> Volumes:
    column = settings.slice_by
    return (
        NO_VOLUMES if column is None else one_volume("glossary", config_map_source(column), "/mnt/glossary")
    )


def refuse_names(permission: Permission) -> Blocked | None:
    if permission.settings.slice_by != "name":
        return None
    return Blocked(
        Reason.CUSTOM_CODE_NOT_ALLOWED, f"{permission.field}.sliceBy: names need no glossary", None
    )


FEATURE: Final = EvaluationFeature(
    field="glossaries",
    stages=frozenset({"evaluate"}),
    config=glossaries_of,
    volumes=volumes_of,
    refuse=refuse_names,
)


@pytest.fixture(autouse=True)
def feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "EVALUATION_FEATURES", (*registry.EVALUATION_FEATURES, FEATURE))
    monkeypatch.setattr(configs, "EvaluateConfig", ConfigWithGlossaries)


def pod_of(cluster: MemoryCluster, stage: str) -> dict[str, Any]:
    pod: dict[str, Any] = cluster.stage_job(stage)["spec"]["template"]["spec"]
    return pod


def test_its_stages_have_its_config_and_its_volumes() -> None:
    cluster = reached("evaluate", evaluation={"sliceBy": "product"})

    pod = pod_of(cluster, "evaluate")
    (text,) = (each["value"] for each in pod["containers"][0]["env"] if each["name"] == CONFIG_ENV)
    assert json.loads(text)["glossaries"] == [{"column": "product", "path": "/mnt/glossary"}]
    assert {"name": "glossary", "configMap": {"name": "product", "optional": True}} in pod["volumes"]
    mounts = [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]
    assert "/mnt/glossary" in mounts
    assert "glossary" not in {volume["name"] for volume in pod_of(cluster, "train")["volumes"]}


def test_it_is_absent_where_the_evaluation_does_not_use_it() -> None:
    pod = pod_of(reached("evaluate", evaluation={}), "evaluate")
    assert "glossary" not in {volume["name"] for volume in pod["volumes"]}


def test_it_refuses_an_evaluation_before_anything_runs() -> None:
    cluster = started(evaluation={"sliceBy": "name"})
    condition = cluster.condition("FineTuneJob", JOB, "Reconciling")
    assert condition is not None
    assert condition["message"].startswith("spec.evaluation.sliceBy: names need no glossary")
