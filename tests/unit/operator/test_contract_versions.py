# SPDX-License-Identifier: Apache-2.0
"""Two versions of the contract at once: what a trainer of the older one gets, and what is read from it.

The newer version of these tests is a made-up one.
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from finetune_operator.reconcile.platform.profiles import check_config
from finetune_trainer.contract.base import (
    CONTRACT_VERSION,
    CONTRACT_VERSIONS,
    Contract,
    SharedPart,
    dump_set_fields,
)
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.results import Report, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import JOB, dataset, finetunejob, prepared, profile
from tests.unit.operator.runsteps import reached
from tests.unit.operator.test_reconcile_blocked import with_claims

OWNER = Owner(kind="FineTuneJob", namespace="team", name="tone", uid="0f0f")
OWN = "registry/trainer:1"
NEXT = CONTRACT_VERSION + 1


class Part(Contract):
    kept: int = 0
    new: Annotated[int, Field(json_schema_extra={"since": NEXT})] = 0


class Message(Contract):
    contract: int = NEXT
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    named: Annotated[str | None, Field(json_schema_extra={"since": NEXT, "essential": True})] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    kept: int = 0
    new: int = field(default=0, metadata={"since": NEXT})


class WithSettings(Contract):
    contract: int = NEXT
    settings: Settings = Settings()


SET = Message(part=Part(kept=1, new=2), parts=(Part(new=3), Part(kept=4)), named="n")


def test_a_field_of_the_newer_version_is_left_out_for_the_older_one() -> None:
    old = SET.model_copy(update={"contract": CONTRACT_VERSION}).to_dict()

    assert old == {"contract": CONTRACT_VERSION, "part": {"kept": 1}, "parts": [{}, {"kept": 4}]}
    assert SET.to_dict()["parts"] == [{"new": 3}, {"kept": 4}]
    assert SET.to_dict()["named"] == "n"


def test_only_essential_fields_that_are_set_are_named_as_unsent() -> None:
    assert SET.model_copy(update={"contract": CONTRACT_VERSION}).unsupported_fields() == ("named",)
    assert SET.unsupported_fields() == ()
    assert Message(contract=CONTRACT_VERSION, part=Part(new=2)).unsupported_fields() == ()


def test_a_field_of_a_dataclass_is_left_out_for_the_older_version() -> None:
    message = WithSettings(contract=CONTRACT_VERSION, settings=Settings(kept=1, new=2))

    assert message.to_dict()["settings"] == {"kept": 1}
    assert message.model_copy(update={"contract": NEXT}).to_dict()["settings"] == {"kept": 1, "new": 2}


def test_a_newer_field_is_recorded_only_when_it_is_set() -> None:
    assert dump_set_fields(Message(contract=NEXT)) == {"contract": NEXT, "part": {"kept": 0}, "parts": []}
    assert dump_set_fields(Part(kept=0, new=2)) == {"kept": 0, "new": 2}


def test_one_version_is_spoken_until_it_is_raised() -> None:
    assert CONTRACT_VERSIONS == (CONTRACT_VERSION,)


def test_a_result_of_a_newer_trainer_is_read_without_what_is_unknown() -> None:
    text = {
        "contract": NEXT,
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
        "contract": NEXT,
        "owner": OWNER.to_dict(),
        "stage": "train",
        "sequence": 1,
        "progress": {"step": 3, "gradientNorm": 0.5},
    }

    assert Report.parse(json.dumps(text).encode()).progress.step == 3
    with pytest.raises(ValidationError):
        Report.parse(json.dumps({**text, "sequence": "x"}).encode())


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"images": {"trainer": OWN}},
        {"images": {"trainer": OWN, "trainerContract": CONTRACT_VERSION}},
    ],
)
def test_a_trainer_image_without_a_version_reads_that_of_the_operator(spec: dict[str, Any]) -> None:
    cluster = MemoryCluster(*with_claims(profile(**spec)), dataset(), finetunejob())
    cluster.settle()
    cluster.succeed("prepare", prepared())
    cluster.settle()

    assert cluster.config("preflight").contract == CONTRACT_VERSION
    assert cluster.job(JOB).status.resolved.trainer_contract == CONTRACT_VERSION


def test_a_run_keeps_the_image_and_the_contract_that_it_began_with() -> None:
    cluster = reached("train")
    kept = cluster.objects["FineTuneJob", JOB]["status"]["resolved"]
    kept |= {"trainerImage": OWN, "trainerContract": NEXT}
    cluster.change("ComputeProfile", "cpu", images={"trainer": "registry/trainer:3"})
    cluster.remove("Job", cluster.stage_job("train")["metadata"]["name"])
    cluster.settle()

    assert cluster.config("train").contract == NEXT
    assert cluster.stage_job("train")["spec"]["template"]["spec"]["containers"][0]["image"] == OWN


def test_a_setting_that_an_older_trainer_must_not_lose_blocks() -> None:
    blocked = check_config(Message(contract=CONTRACT_VERSION, named="n"), None)

    assert blocked is not None
    assert blocked.reason == "ProfileInvalid"
    assert "does not support named, which this object sets" in blocked.message
    assert check_config(Message(named="n"), None) is None


def test_a_shared_part_may_have_a_field_with_the_name_of_a_bound() -> None:
    class Bounded(SharedPart):
        pattern: Annotated[str, Field(max_length=3)] = ""

    assert Bounded(pattern="longer").pattern == "longer"
