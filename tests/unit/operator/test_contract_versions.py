# SPDX-License-Identifier: Apache-2.0
"""Two versions of the contract at once: what a trainer of the older one gets, and what is read from it."""

import json
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from finetune_operator.reconcile.platform.profiles import check_config
from finetune_trainer.contract.base import CONTRACT_VERSION, CONTRACT_VERSIONS, Contract, SharedPart
from finetune_trainer.contract.progress import Report
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB, dataset, finetunejob, prepared, profile
from tests.unit.operator.runsteps import reached
from tests.unit.operator.test_reconcile_blocked import with_claims

OWNER = Owner(kind="FineTuneJob", namespace="team", name="tone", uid="0f0f")
OWN = "registry/trainer:1"


class Part(Contract):
    kept: int = 0
    new: Annotated[int, Field(json_schema_extra={"since": 2})] = 0


class Message(Contract):
    contract: int = CONTRACT_VERSION
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    named: Annotated[str | None, Field(json_schema_extra={"since": 2, "essential": True})] = None


SET = Message(part=Part(kept=1, new=2), parts=(Part(new=3), Part(kept=4)), named="n")


def test_a_field_of_the_newer_version_is_left_out_for_the_older_one() -> None:
    old = SET.model_copy(update={"contract": 1}).to_dict()

    assert old == {"contract": 1, "part": {"kept": 1}, "parts": [{}, {"kept": 4}]}
    assert SET.to_dict()["parts"] == [{"new": 3}, {"kept": 4}]
    assert SET.to_dict()["named"] == "n"


def test_only_essential_fields_that_are_set_are_named_as_unsent() -> None:
    assert SET.model_copy(update={"contract": 1}).unsupported_fields() == ("named",)
    assert SET.unsupported_fields() == ()
    assert Message(contract=1, part=Part(new=2)).unsupported_fields() == ()


def test_one_more_version_is_spoken() -> None:
    assert CONTRACT_VERSIONS == (1, 2)


def test_a_result_of_a_newer_trainer_is_read_without_what_is_unknown() -> None:
    text = {
        "contract": 3,
        "stage": "evaluate",
        "run": "r",
        "outcome": "Succeeded",
        "news": {"a": 1},
        "evaluate": {
            "checkpoint": "sha256:" + "0" * 64,
            "split": "test",
            "scores": [{"metric": "bleu", "subject": "Live", "value": 1, "rows": 2, "interval": [0, 1]}],
        },
    }

    result = StageResult.parse(json.dumps(text))

    assert result is not None
    assert result.evaluate is not None
    score = result.evaluate.scores[0].model_dump()
    assert (score["metric"], score["subject"]) == ("bleu", "Live")


def test_a_report_of_a_newer_trainer_is_read_and_a_broken_one_is_not() -> None:
    text = {
        "contract": 3,
        "owner": OWNER.to_dict(),
        "stage": "train",
        "sequence": 1,
        "progress": {"step": 3, "gradientNorm": 0.5},
    }

    assert Report.parse(json.dumps(text).encode()).progress.step == 3
    with pytest.raises(ValidationError):
        Report.parse(json.dumps({**text, "sequence": "x"}).encode())


@pytest.mark.parametrize(
    ("spec", "contract"),
    [
        ({}, 2),
        ({"images": {"trainer": OWN}}, 2),
        ({"images": {"trainer": OWN, "trainerContract": 1}}, 1),
        ({"images": {"trainer": OWN, "trainerContract": 2}}, 2),
    ],
)
def test_every_config_is_in_the_contract_of_the_trainer(spec: dict[str, Any], contract: int) -> None:
    cluster = MemoryCluster(*with_claims(profile(**spec)), dataset(), finetunejob())
    cluster.settle()
    assert cluster.config("prepare").contract == contract
    cluster.succeed("prepare", prepared())
    cluster.settle()
    assert cluster.config("preflight").contract == contract
    assert cluster.job(JOB).status.resolved.trainer_contract == contract


def test_a_run_keeps_the_contract_of_the_image_that_it_began_with() -> None:
    cluster = reached("train")
    kept = cluster.objects["FineTuneJob", JOB]["status"]["resolved"]
    kept["trainerImage"] = OWN
    del kept["trainerContract"]  # as a release that spoke only the first contract left it
    cluster.change("ComputeProfile", "cpu", images={"trainer": "registry/trainer:3", "trainerContract": 3})
    cluster.remove("Job", cluster.stage_job("train")["metadata"]["name"])
    cluster.settle()

    assert cluster.config("train").contract == 1
    assert cluster.stage_job("train")["spec"]["template"]["spec"]["containers"][0]["image"] == OWN


def test_a_setting_that_an_older_trainer_must_not_lose_blocks() -> None:
    blocked = check_config(Message(contract=1, named="n"), None)

    assert blocked is not None
    assert blocked.reason == "ProfileInvalid"
    assert "does not support named, which this object sets" in blocked.message
    assert check_config(Message(named="n"), None) is None


def test_a_shared_part_may_have_a_field_with_the_name_of_a_bound() -> None:
    class Bounded(SharedPart):
        pattern: Annotated[str, Field(max_length=3)] = ""

    assert Bounded(pattern="longer").pattern == "longer"
