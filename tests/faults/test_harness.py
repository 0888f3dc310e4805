# SPDX-License-Identifier: Apache-2.0
"""The matrix detects an operator that breaks one of its rules."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_operator.engine.watches import RELIST_SECONDS
from tests.faults.faults import DisturbedWrite, Fault, LostEvent
from tests.faults.laboratory import Verdicts
from tests.faults.matrix import IMPATIENT_SECONDS
from tests.faults.releases import Edit, release
from tests.faults.snapshot import comparable, numbered
from tests.faults.trials import Trial

PATIENCE_SECONDS = 60.0

DRAWS_NAMES = Edit(
    "manifests/labels.py",
    "short_hash(owner.uid, stage, *distinguish)",
    "short_hash(owner.uid, stage, *distinguish, str(__import__('os').getpid()))",
)
CREATES_FOR_WHAT_IS_GONE = Edit(
    "engine/executor.py", "            await self.confirm(primary)\n", "            pass\n"
)
PASSES_OVER_A_FAILED_CREATE = Edit(
    "engine/executor.py",
    "        except AlreadyExists:\n"
    '            if create.same == "Unread":\n'
    "                return\n"
    "            existing = await self._live(manifest)\n"
    "            if existing is None:\n"
    "                raise\n",
    "        except Exception:\n"
    "            existing = await self._live(manifest)\n"
    "            if existing is None:\n"
    "                return\n",
)
DOES_NOT_LOOK_AGAIN = Edit(
    "engine/queue.py",
    'reconciling again", _name(key), error)\n            self._queue.retry(key)\n',
    'reconciling again", _name(key), error)\n',
)
NEVER_LISTS_AGAIN = Edit(
    "engine/watches.py",
    '                self._resource_version = ""\n                wait',
    "                wait",
)
LEAVES_ITS_RECORDS = Edit(
    "reconcile/records/retention.py", 'draft.remove(deletion_target(record), "Background")', "pass"
)


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that an edited operator breaks, and how the matrix detects it.

    Attributes:
        means: the fault of the operator.
        breaks: the edit that causes it.
        disturbance: the disturbance that reveals it.
        shows: pattern of the failure message.
        relist_seconds: interval of the operator's lists.
    """

    means: str
    breaks: Edit
    disturbance: DisturbedWrite | LostEvent
    shows: str
    relist_seconds: int = RELIST_SECONDS

    @property
    def trial(self) -> Trial:
        return Trial(self.disturbance, (self.breaks,), PATIENCE_SECONDS, self.relist_seconds)

    @property
    def control(self) -> Trial:
        """The same trial with the unedited operator."""
        return Trial(self.disturbance, (), PATIENCE_SECONDS, self.relist_seconds)


BROKEN_RULES = [
    BrokenRule(
        "each process chooses new names for its Jobs",
        DRAWS_NAMES,
        DisturbedWrite("POST jobs routing-train", Fault.KILLED_AFTER),
        "the second run has no train Job|the objects equal those|not the same",
    ),
    BrokenRule(
        "the operator creates objects for an owner that no longer exists",
        CREATES_FOR_WHAT_IS_GONE,
        LostEvent("inferencedeployments support deleted"),
        "no child remains|not the same",
        IMPATIENT_SECONDS,
    ),
    BrokenRule(
        "the operator ignores a failed create",
        PASSES_OVER_A_FAILED_CREATE,
        DisturbedWrite("POST checkpoints routing-40", Fault.INTERNAL),
        "FineTuneJob routing is Ready|not the same",
    ),
    BrokenRule(
        "the operator does not reconcile again after a conflict",
        DOES_NOT_LOOK_AGAIN,
        DisturbedWrite("POST jobs routing-preflight", Fault.CONFLICT),
        "FineTuneJob routing is Ready",
    ),
    BrokenRule(
        "the operator never lists again after a lost event",
        NEVER_LISTS_AGAIN,
        LostEvent("jobs routing-train Complete=True/CompletionsReached"),
        "FineTuneJob routing is Ready",
        IMPATIENT_SECONDS,
    ),
    BrokenRule(
        "a deleted run leaves its records",
        LEAVES_ITS_RECORDS,
        DisturbedWrite("PATCH finetunejobs routing-v2 released", Fault.KILLED_AFTER),
        "only the kept records remain",
    ),
]
BROKEN = [pytest.param(each.trial, each.shows, id=each.means) for each in BROKEN_RULES]
CONTROLS = [pytest.param(each.control, id=each.means) for each in BROKEN_RULES]


@pytest.mark.full
@pytest.mark.parametrize(("trial", "shows"), BROKEN)
def test_a_broken_rule_is_found(trial: Trial, shows: str, verdicts: Verdicts) -> None:
    with pytest.raises(AssertionError, match=shows):
        verdicts[trial].result()


@pytest.mark.full
@pytest.mark.parametrize("trial", CONTROLS)
def test_without_the_edit_the_same_trial_passes(trial: Trial, verdicts: Verdicts) -> None:
    """With the same time limit, so that the other test detects the broken rule and not a slow machine."""
    verdicts[trial].result()


def test_a_name_that_ends_with_the_digits_of_a_number_is_another_identity() -> None:
    objects = [
        {"name": f"train-{digits}", "owner": f"train-{digits}", "runAsUser": 65532}
        for digits in ("65532", "4d1f7")
    ]

    first, second = (json.loads(numbered(json.dumps(each))) for each in objects)

    assert first["name"] == second["name"] == second["owner"] == "train-<1>"
    assert first["runAsUser"] == second["runAsUser"] == 65532


def test_pods_that_wait_for_a_second_equal_pods_that_start_at_once() -> None:
    failed = {"cause": "Failure", "deviceSeconds": 30}
    waited = {"cause": "Waiting", "deviceSeconds": 1}

    assert comparable({"cost": {"deviceSeconds": 5, "lost": [waited]}}) == comparable({"cost": {}})
    assert comparable({"lost": [failed, waited]}) == {"lost": [{"cause": "Failure"}]}


@pytest.mark.parametrize(("trial", "shows"), BROKEN)
def test_the_rules_are_where_they_are_broken(trial: Trial, shows: str, tmp_path: Path) -> None:
    """Fails in `make test`, not only in `make test-full`, when an edit does not match the code any more."""
    assert release(tmp_path, trial.edits)
