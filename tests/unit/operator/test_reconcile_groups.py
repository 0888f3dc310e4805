# SPDX-License-Identifier: Apache-2.0
"""The column whose rows are together in one split, from prepare to the config of evaluate."""

import json
from typing import Any

import pytest

from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import CONFIG_ENV
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import dataset, finetunejob, prepared, prerequisites
from tests.unit.operator.runsteps import RESULTS, STAGES

BY_CUSTOMER = {"split": {"groupBy": "customer"}}


def evaluating(data: Manifest, **result: Any) -> MemoryCluster:
    """A run whose evaluate Job exists, with this result of prepare."""
    cluster = MemoryCluster(*prerequisites(), data, finetunejob())
    cluster.settle()
    cluster.succeed("prepare", prepared(**result), after=5)
    cluster.settle()
    for stage in STAGES[:-1]:
        cluster.succeed(stage, RESULTS[stage](), after=10)
        cluster.settle()
    return cluster


def group_by(cluster: MemoryCluster) -> str | None:
    container = cluster.stage_job("evaluate")["spec"]["template"]["spec"]["containers"][0]
    text = next(each["value"] for each in container["env"] if each["name"] == CONFIG_ENV)
    column: str | None = json.loads(text).get("groupBy")
    return column


@pytest.mark.parametrize(
    ("data", "recorded", "column"),
    [
        (dataset(**BY_CUSTOMER), "customer", "customer"),
        (dataset(), None, None),
        # The Dataset was changed after the version was prepared.
        (dataset(), "customer", "customer"),
    ],
)
def test_an_evaluation_is_given_the_column_of_its_rows(
    data: Manifest, recorded: str | None, column: str | None
) -> None:
    assert group_by(evaluating(data, group_by=recorded)) == column


@pytest.mark.parametrize(("curve", "column"), [({"shares": [0.5]}, "customer"), (None, None)])
def test_a_training_is_given_the_column_for_the_intervals_of_its_curve(
    curve: Manifest | None, column: str | None
) -> None:
    """A run without a curve keeps the digest of its config."""
    cluster = MemoryCluster(*prerequisites(), dataset(**BY_CUSTOMER), finetunejob(learningCurve=curve))
    cluster.settle()
    cluster.succeed("prepare", prepared(group_by="customer"))
    cluster.settle()
    cluster.succeed("preflight", RESULTS["preflight"]())
    cluster.settle()

    assert cluster.config("train").group_by == column
