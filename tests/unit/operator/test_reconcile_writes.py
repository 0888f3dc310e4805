# SPDX-License-Identifier: Apache-2.0
"""Writes that are spared, because a cluster with thousands of runs has to take all of them."""

from tests.unit.operator.runobjects import CHECKPOINT, JOB
from tests.unit.operator.runsteps import ended, reached


def test_a_new_record_says_nothing_until_its_run_has_judged_it() -> None:
    cluster = reached("evaluate")
    assert cluster.states("Checkpoint", CHECKPOINT) == {}


def test_a_promoted_record_keeps_the_words_that_it_was_promoted_with() -> None:
    cluster = ended()
    said = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert said is not None
    assert "exact_match" in said["message"]


def test_a_stage_whose_pod_has_ended_runs_until_its_job_has() -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.settle()
    before = cluster.condition("FineTuneJob", JOB, "Reconciling")
    ending = {"exitCode": 0, "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:01:00Z"}
    cluster.pod("train", {"terminated": ending})
    cluster.settle()
    assert cluster.condition("FineTuneJob", JOB, "Reconciling") == before
