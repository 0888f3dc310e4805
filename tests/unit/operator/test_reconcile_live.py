# SPDX-License-Identifier: Apache-2.0
"""Gates over Live: the champion that an evaluation compares with, and what happens when it changes."""

from copy import deepcopy
from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.manifests.labels import short_hash
from finetune_operator.reconcile.features.champion import MAX_RENEWALS
from finetune_trainer.contract.evaluation import LiveModel, UnmeasuredSubject
from finetune_trainer.contract.results import Progress, Score, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import BASE, CHECKPOINT, JOB, JOB_UID, digest, evaluated, trained
from tests.unit.operator.runsteps import ended, reached

GATES = [{"metric": "exact_match", "min": 0.8}, {"metric": "exact_match", "minGain": 0, "over": "Live"}]
RECORD = ended().objects["Checkpoint", CHECKPOINT]


def crown(cluster: MemoryCluster, character: str, *, settle: bool = True, **lineage: Any) -> str:
    """Add a Checkpoint of a run that is gone, which becomes the champion of the line; return its name."""
    number = int(character, 16)
    spec = deepcopy(RECORD["spec"]) | {"digest": digest(character)}
    spec["lineage"] |= {"job": {"name": "gone", "uid": f"gone-{character}"}, **lineage}
    manifest = {**RECORD, "metadata": {"name": f"rival-{character}"}, "spec": spec}
    manifest["status"] = {"observedGeneration": 1, "promotedAt": f"2030-01-02T02:{number:02}:00Z"}
    cluster.add(manifest)
    if settle:
        cluster.settle()
    return f"rival-{character}"


def evaluating(*champions: str, gates: list[dict[str, Any]] | None = None, **spec: Any) -> MemoryCluster:
    """A run whose evaluation has started, in a line with these champions."""
    cluster = reached("train", evaluation={"gates": GATES if gates is None else gates, **spec})
    for character in champions:
        crown(cluster, character)
    cluster.succeed("train", trained(), after=10)
    cluster.settle()
    return cluster


def measured(cluster: MemoryCluster, live: float | None = 0.5, tuned: float = 0.95) -> StageResult:
    """The result of the evaluate pod, by its config."""
    config = cluster.config("evaluate")
    result = evaluated(tuned, live=config.live.digest if config.live is not None else None)
    assert result.evaluate is not None
    scores = [score for score in result.evaluate.scores if score.subject in config.subjects]
    if "Live" in config.subjects and live is not None:
        scores.append(Score(metric="exact_match", subject="Live", value=live, rows=24))
    return result.model_copy(
        update={"evaluate": result.evaluate.model_copy(update={"scores": tuple(scores)})}
    )


def judge(cluster: MemoryCluster, live: float | None = 0.5, tuned: float = 0.95) -> None:
    cluster.start("evaluate")
    cluster.succeed("evaluate", measured(cluster, live, tuned), after=10)
    cluster.settle()


def evaluation_of(cluster: MemoryCluster) -> EvaluationStatus:
    evaluation = cluster.job(JOB).status.evaluation
    assert evaluation is not None
    return evaluation


def end_of(cluster: MemoryCluster) -> str:
    states = cluster.states("FineTuneJob", JOB)
    return states.get("Ready") or states["Stalled"]


def promoted(cluster: MemoryCluster) -> tuple[str, str]:
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert condition is not None
    return condition["status"], condition["reason"]


def promoted_message(cluster: MemoryCluster) -> str:
    condition = cluster.condition("Checkpoint", CHECKPOINT, "Promoted")
    assert condition is not None
    message: str = condition["message"]
    return message


def job_name(*champion: str) -> str:
    return f"{JOB}-evaluate-{short_hash(JOB_UID, 'evaluate', *champion)}"


def test_a_line_without_a_champion_promotes_by_the_other_bounds_and_says_so() -> None:
    cluster = evaluating()
    assert (cluster.config("evaluate").live, cluster.config("evaluate").subjects) == (None, ("Tuned", "Base"))
    assert cluster.stage_job("evaluate")["metadata"]["name"] == job_name()

    judge(cluster)

    assert end_of(cluster) == "Promoted"
    assert [gate.verdict for gate in evaluation_of(cluster).gates] == ["Passed", "NotApplicable"]
    assert "the model line has no other champion" in promoted_message(cluster)


@pytest.mark.parametrize(("live", "end"), [(0.5, "Promoted"), (0.97, "GateFailed"), (0.95, "GateFailed")])
def test_a_model_is_promoted_only_if_it_is_better_than_the_champion(live: float, end: str) -> None:
    cluster = evaluating("1")
    config = cluster.config("evaluate")
    assert config.live == LiveModel(name="rival-1", digest=digest("1"), type="Adapter", base_model=BASE)
    assert config.subjects == ("Tuned", "Base", "Live")
    assert cluster.stage_job("evaluate")["metadata"]["name"] == job_name(digest("1"))

    judge(cluster, live)

    assert end_of(cluster) == end
    evaluation = evaluation_of(cluster)
    assert (evaluation.champion, evaluation.live) == ("rival-1", "rival-1")
    assert "over Live" in promoted_message(cluster)


def test_a_champion_that_changes_during_the_evaluation_is_measured_in_another_job() -> None:
    cluster = evaluating("1")
    cluster.start("evaluate")
    cluster.report("evaluate", Progress(step=24, total_steps=24))
    crown(cluster, "2")
    assert cluster.stage_job("evaluate")["metadata"]["name"] == job_name(digest("1"))

    judge(cluster)

    assert cluster.config("evaluate").live.name == "rival-2"
    assert cluster.stage_job("evaluate")["metadata"]["name"] == job_name(digest("2"))
    status = cluster.job(JOB).status
    assert status.evaluation is None
    assert status.live is not None
    assert status.live.renewals == 1
    evaluated_ = cluster.condition("FineTuneJob", JOB, "Evaluated")
    assert evaluated_ is not None
    assert (evaluated_["status"], evaluated_["reason"]) == ("False", "Evaluating")
    assert (
        "comparing with champion rival-2 instead of champion rival-1 (renewal 1 of 3)"
        in evaluated_["message"]
    )
    assert "EvaluationRenewed" in [event.reason for event in cluster.events]
    assert status.progress is not None
    assert (status.progress.stage, status.progress.percent) == ("evaluate", 0)

    judge(cluster)

    assert end_of(cluster) == "Promoted"
    assert evaluation_of(cluster).champion == "rival-2"
    assert cluster.states("FineTuneJob", JOB)["Evaluated"] == "Succeeded"
    times = next(stage for stage in cluster.job(JOB).status.stages if stage.name == "evaluate")
    assert times.seconds == 20


def test_a_champion_that_changes_before_the_promotion_is_measured_too() -> None:
    cluster = evaluating("1")
    cluster.succeed("evaluate", measured(cluster), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    assert evaluation_of(cluster).verdict == "Passed"
    crown(cluster, "2", settle=False)
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert promoted(cluster) == ("False", "Promoting")
    cluster.settle()
    assert promoted(cluster) == ("False", "Evaluating")

    judge(cluster)

    assert (end_of(cluster), evaluation_of(cluster).champion) == ("Promoted", "rival-2")
    assert promoted(cluster) == ("True", "Promoted")


def test_the_result_of_a_champion_that_returns_is_used_again() -> None:
    cluster = evaluating("1")
    cluster.start("evaluate")
    second = crown(cluster, "2")
    judge(cluster)
    cluster.start("evaluate")
    cluster.change("Checkpoint", second, approval={"state": "Rejected"})
    cluster.settle()

    judge(cluster)

    assert end_of(cluster) == "Promoted"
    assert (evaluation_of(cluster).champion, len(evaluate_jobs(cluster))) == ("rival-1", 2)


def test_without_the_last_champion_the_gate_does_not_apply() -> None:
    cluster = evaluating("1")
    cluster.start("evaluate")
    cluster.change("Checkpoint", "rival-1", approval={"state": "Rejected"})
    cluster.settle()
    judge(cluster, live=0.99)
    assert cluster.stage_job("evaluate")["metadata"]["name"] == job_name()

    judge(cluster)

    assert end_of(cluster) == "Promoted"
    assert [gate.verdict for gate in evaluation_of(cluster).gates] == ["Passed", "NotApplicable"]


def test_a_checkpoint_that_a_user_approved_first_is_not_compared_with_itself() -> None:
    cluster = reached("train", evaluation={"gates": GATES})
    cluster.succeed("train", trained(), after=10)
    cluster.reconcile("FineTuneJob", JOB)
    cluster.change("Checkpoint", CHECKPOINT, approval={"state": "Approved"})
    cluster.reconcile("Checkpoint", CHECKPOINT)
    assert promoted(cluster) == ("True", "Promoted")
    cluster.settle()

    judge(cluster)

    assert end_of(cluster) == "Promoted"
    assert (evaluation_of(cluster).live, len(evaluate_jobs(cluster))) == (None, 1)


def evaluate_jobs(cluster: MemoryCluster) -> list[str]:
    return [name for name in cluster.of("Job") if name.startswith(f"{JOB}-evaluate")]


def test_a_champion_that_keeps_changing_leaves_the_run_undecided() -> None:
    cluster = evaluating("1")
    for character in "2345"[: MAX_RENEWALS + 1]:
        cluster.start("evaluate")
        crown(cluster, character)
        judge(cluster)

    assert end_of(cluster) == "ChampionKeepsChanging"
    evaluation = evaluation_of(cluster)
    assert (evaluation.verdict, evaluation.reason) == ("Undecided", "ChampionKeepsChanging")
    assert len(evaluate_jobs(cluster)) == 1 + MAX_RENEWALS
    assert promoted(cluster) == ("False", "ChampionKeepsChanging")
    assert "set spec.approval of the Checkpoint" in promoted_message(cluster)


@pytest.mark.parametrize(
    "gates",
    [[{"metric": "exact_match", "min": 0.99}, GATES[1]], [GATES[0]]],
    ids=["failed anyway", "compared without a gate"],
)
def test_what_does_not_depend_on_the_champion_is_not_measured_again(gates: list[dict[str, Any]]) -> None:
    cluster = evaluating("1", gates=gates, compare=["Live"])
    cluster.start("evaluate")
    crown(cluster, "2")

    judge(cluster)

    assert end_of(cluster) == ("Promoted" if gates == [GATES[0]] else "GateFailed")
    assert (evaluation_of(cluster).live, len(evaluate_jobs(cluster))) == ("rival-1", 1)


def test_a_champion_that_changes_before_the_job_exists_is_not_a_renewal() -> None:
    cluster = evaluating("1")
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    crown(cluster, "2")
    cluster.change("FineTuneJob", JOB, suspend=False)
    cluster.settle()

    status = cluster.job(JOB).status
    assert status.live is not None
    assert (status.live.checkpoint, status.live.renewals) == ("rival-2", 0)
    assert evaluate_jobs(cluster) == [job_name(digest("2"))]


def test_a_suspended_evaluation_waits_for_the_pod_that_measures_the_champion() -> None:
    cluster = evaluating("1")
    cluster.start("evaluate")
    pod = deepcopy(next(p for p in cluster.of("Pod").values() if "evaluate" in p["metadata"]["name"]))
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    cluster.add(pod)
    cluster.settle()

    assert cluster.states("FineTuneJob", JOB).get("Reconciling") == "Suspending"


def test_a_champion_that_cannot_be_read_leaves_the_run_undecided_with_the_reason() -> None:
    cluster = evaluating("1")
    result = measured(cluster, live=None)
    assert result.evaluate is not None
    unread = UnmeasuredSubject(subject="Live", message="its weights are not in the store")
    result = result.model_copy(
        update={"evaluate": result.evaluate.model_copy(update={"unmeasured": (unread,)})}
    )

    cluster.succeed("evaluate", result, after=10)
    cluster.settle()

    assert end_of(cluster) == "EvaluationUndecided"
    assert "its weights are not in the store" in evaluation_of(cluster).gates[1].message


def test_a_stored_result_of_another_champion_decides_nothing() -> None:
    cluster = evaluating("1")
    result = measured(cluster)
    assert result.evaluate is not None
    other = result.evaluate.model_copy(update={"live": digest("9")})

    cluster.succeed("evaluate", result.model_copy(update={"evaluate": other}), after=10)
    cluster.settle()

    assert end_of(cluster) == "EvaluationUndecided"
    assert "the stored result has another champion" in evaluation_of(cluster).gates[1].message


def test_the_trainer_gets_the_facts_of_a_champion_of_another_base_model() -> None:
    cluster = reached("train", evaluation={"gates": GATES})
    other = {"uri": "pvc://models/other", "digest": digest("a")}
    crown(cluster, "1", baseModel=other, chatTemplateKwargs={"enable_thinking": False})
    cluster.now += timedelta(seconds=1)
    cluster.succeed("train", trained(), after=10)
    cluster.settle()

    assert cluster.config("evaluate").live == LiveModel(
        name="rival-1",
        digest=digest("1"),
        type="Adapter",
        base_model=digest("a"),
        chat_template_kwargs={"enable_thinking": False},
    )


def test_the_deletion_of_a_champion_waits_until_it_is_measured_and_another_replaces_it() -> None:
    cluster = evaluating("1", "2")
    cluster.change("Checkpoint", "rival-2", deletionPolicy="Delete")
    cluster.settle()
    cluster.start("evaluate")
    cluster.delete("Checkpoint", "rival-2")
    cluster.settle()
    assert cluster.states("Checkpoint", "rival-2")["Reconciling"] == "InUse"
    assert (
        f"FineTuneJob {JOB}" in (cluster.condition("Checkpoint", "rival-2", "Reconciling") or {})["message"]
    )

    judge(cluster)

    assert cluster.config("evaluate").live.name == "rival-1"
    assert cluster.states("Checkpoint", "rival-2")["Reconciling"] == "CleaningUp"


def test_a_suspended_run_keeps_no_champion() -> None:
    cluster = evaluating("1")
    cluster.change("Checkpoint", "rival-1", deletionPolicy="Delete")
    cluster.settle()
    cluster.change("FineTuneJob", JOB, suspend=True)
    cluster.settle()
    cluster.delete("Checkpoint", "rival-1")
    cluster.settle()

    assert cluster.states("Checkpoint", "rival-1")["Reconciling"] == "CleaningUp"
