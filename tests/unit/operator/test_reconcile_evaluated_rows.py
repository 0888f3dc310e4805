# SPDX-License-Identifier: Apache-2.0
"""A run that is evaluated on the rows of another Dataset than that of its training rows."""

from copy import deepcopy
from typing import Any

import pytest

from finetune_operator.plan import Key
from finetune_operator.reconcile.scheduling import related
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.evaluations import ASKED, QUESTIONS, QUESTIONS_UID, QUESTIONS_VERSION, questions
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    DATASET,
    JOB,
    ROWS,
    VERSION,
    dataset,
    digest,
    evaluated,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)
from tests.unit.operator.test_reconcile_live import crown

GATES = [{"metric": "exact_match", "min": 0.8}]
RUN = Key("FineTuneJob", "team", JOB)


def started(split: str = "test", name: str = QUESTIONS, **evaluation: Any) -> MemoryCluster:
    """A run whose training rows are prepared, and that is evaluated on a Dataset that does not exist yet."""
    rows = {"ref": {"name": name}, "split": split}
    run = finetunejob(evaluation={"dataset": rows, "gates": GATES, **evaluation})
    cluster = MemoryCluster(*prerequisites(), dataset(), run)
    cluster.settle()
    cluster.succeed("prepare", prepared(test_rows=0), after=5)
    cluster.settle()
    return cluster


def asked(cluster: MemoryCluster, **prepare: Any) -> MemoryCluster:
    """Prepare the rows to evaluate on."""
    cluster.add(questions())
    cluster.settle()
    cluster.succeed("prepare", prepared(f"{QUESTIONS_UID}-1", **{"dataset": ASKED, **prepare}))
    cluster.settle()
    return cluster


def through(cluster: MemoryCluster, *results: StageResult) -> MemoryCluster:
    """Let stages succeed, one after the other."""
    for result in results:
        cluster.succeed(result.stage, result, after=10)
        cluster.settle()
    return cluster


def resolved(cluster: MemoryCluster) -> tuple[str | None, ...]:
    found = cluster.job(JOB).status.resolved
    return (
        found.dataset_version,
        found.dataset_digest,
        found.evaluation_dataset_version,
        found.evaluation_dataset_digest,
    )


def test_each_stage_knows_the_rows_that_it_must_learn_and_those_that_it_must_not() -> None:
    cluster = asked(started("validation", sliceBy="language"))
    assert resolved(cluster) == (VERSION, ROWS, QUESTIONS_VERSION, ASKED)
    early = cluster.config("preflight")
    assert (early.dataset, early.test_dataset, early.test_split) == (ROWS, ASKED, "validation")

    through(cluster, preflighted())
    learns = cluster.config("train")
    assert (learns.dataset, learns.test_dataset, learns.test_split) == (ROWS, ASKED, "validation")

    through(cluster, trained())
    late = cluster.config("evaluate")
    assert (late.dataset, late.split) == (ASKED, "validation")
    assert (late.training_dataset, late.shown_dataset) == (ROWS, ROWS)


def test_without_another_dataset_the_own_test_rows_are_measured() -> None:
    cluster = MemoryCluster(*prerequisites(), dataset(), finetunejob())
    cluster.settle()
    through(cluster, prepared(), preflighted(), trained())

    assert cluster.job(JOB).status.resolved.evaluation_dataset_version is None
    late = cluster.config("evaluate")
    assert (late.dataset, late.split, late.training_dataset, late.shown_dataset) == (ROWS, "test", ROWS, None)
    through(cluster, evaluated())
    (entry,) = cluster.objects["Checkpoint", CHECKPOINT]["status"]["evaluations"]
    assert (entry["source"], entry["datasetVersion"], entry["datasetDigest"]) == ("Run", VERSION, ROWS)


def test_the_scores_name_the_rows_that_they_were_measured_on() -> None:
    cluster = through(asked(started()), preflighted(), trained(), evaluated())

    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert (evaluation.dataset_version, evaluation.dataset_digest) == (QUESTIONS_VERSION, ASKED)
    assert evaluation.untested_answers is None
    (entry,) = cluster.objects["Checkpoint", CHECKPOINT]["status"]["evaluations"]
    assert (entry["source"], entry["datasetVersion"], entry["datasetDigest"]) == (
        "Run",
        QUESTIONS_VERSION,
        ASKED,
    )
    assert cluster.states("FineTuneJob", JOB)["Ready"] == "Promoted"


def test_the_rows_stay_those_of_the_start_when_the_dataset_gets_another_version() -> None:
    cluster = through(asked(started()), preflighted())
    cluster.change("Dataset", QUESTIONS, source={"uri": "configmap://tickets/more.jsonl"})
    cluster.settle()
    through(cluster, prepared(f"{QUESTIONS_UID}-2", dataset=digest("8"), source=digest("7")), trained())

    assert cluster.objects["Dataset", QUESTIONS]["status"]["latestVersion"] != QUESTIONS_VERSION
    assert cluster.config("evaluate").dataset == ASKED


def test_the_run_waits_for_rows_that_git_applies_later_and_their_dataset_wakes_it() -> None:
    cluster = started()
    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "DatasetNotFound"
    assert not cluster.has_stage_job("preflight")

    cluster.add(questions())
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB)["Reconciling"] == "WaitingForDataset"
    manifest = cluster.objects["Dataset", QUESTIONS]
    assert RUN in related("Dataset", None, manifest, cluster.reader())
    through(cluster, prepared(f"{QUESTIONS_UID}-1", dataset=ASKED))
    assert cluster.has_stage_job("preflight")
    assert RUN not in related("Dataset", None, manifest, cluster.reader())


def test_an_empty_split_is_refused_before_the_training() -> None:
    cluster = asked(started(), test_rows=0)

    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert condition["reason"] == "InvalidSpec"
    assert condition["message"].startswith("spec.evaluation.dataset.split: the test split of DatasetVersion")
    assert "new FineTuneJob on another split of it (train (192 rows)" in condition["message"]


def test_the_rows_that_it_trains_on_are_no_test_rows() -> None:
    cluster = started("train", name=DATASET)

    condition = cluster.condition("FineTuneJob", JOB, "Stalled")
    assert condition is not None
    assert condition["message"].startswith("spec.evaluation.dataset names the rows that the run trains on")


def test_its_test_rows_are_in_use_until_the_run_ends() -> None:
    cluster = through(asked(started()), preflighted(), trained())
    cluster.change("DatasetVersion", QUESTIONS_VERSION, deletionPolicy="Delete")
    cluster.settle()
    cluster.delete("DatasetVersion", QUESTIONS_VERSION)
    cluster.settle()
    assert cluster.states("DatasetVersion", QUESTIONS_VERSION)["Reconciling"] == "InUse"

    before = deepcopy(cluster.objects["FineTuneJob", JOB])
    cluster.succeed("evaluate", evaluated(), after=10)
    for _ in range(3):
        cluster.reconcile("Checkpoint", CHECKPOINT)
        cluster.reconcile("FineTuneJob", JOB)

    assert cluster.states("FineTuneJob", JOB)["Ready"] == "Promoted"
    ended = cluster.objects["FineTuneJob", JOB]
    version = Key("DatasetVersion", "team", QUESTIONS_VERSION)
    assert version in related("FineTuneJob", before, ended, cluster.reader())


def test_rows_that_the_training_left_out_are_counted_in_the_status() -> None:
    found = preflighted()
    assert found.preflight is not None
    warning = "3 rows of training and validation have the input of a row of evaluation.dataset"
    leaks = found.preflight.model_copy(update={"leaked_rows": 3, "warnings": (warning,)})
    cluster = through(asked(started()), found.model_copy(update={"preflight": leaks}))

    assert cluster.job(JOB).status.leaked_rows == 3
    assert warning in (cluster.condition("FineTuneJob", JOB, "Preflighted") or {})["message"]
    assert any(event.message == warning for event in cluster.events)


@pytest.mark.parametrize(("live", "verdict"), [(0.5, "Passed"), (0.97, "Failed")])
def test_a_gate_over_the_champion_compares_on_the_same_rows(live: float, verdict: str) -> None:
    gates = [{"metric": "exact_match", "minGain": 0, "over": "Live"}]
    cluster = asked(started(gates=gates))
    crown(cluster, "1")
    through(cluster, preflighted(), trained())
    assert cluster.config("evaluate").live.digest == digest("1")

    result = evaluated(live=digest("1"))
    assert result.evaluate is not None
    first = result.evaluate.scores[0]
    champion = first.model_copy(update={"subject": "Live", "value": live})
    scores = (*result.evaluate.scores, champion)
    through(
        cluster,
        result.model_copy(update={"evaluate": result.evaluate.model_copy(update={"scores": scores})}),
    )

    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    assert evaluation.verdict == verdict
