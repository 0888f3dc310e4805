# SPDX-License-Identifier: Apache-2.0
"""Training in a run's status: its progress, an early stop, overfitting."""

from typing import Any

import pytest

from finetune_trainer.contract.method import Method, Preference
from finetune_trainer.contract.results import CheckpointResult, LearningCurve, LearningCurvePoint, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import (
    CHECKPOINT,
    HYPERPARAMETERS,
    JOB,
    dataset,
    digest,
    finetunejob,
    preflighted,
    prepared,
    prerequisites,
    trained,
)
from tests.unit.operator.runsteps import reached

BEST = CheckpointResult(
    digest=digest("e"), type="Adapter", step=20, epoch=2, train_loss=0.9, validation_loss=1.2, best=True
)
FINAL = CheckpointResult(
    digest=digest("f"), type="Adapter", step=30, epoch=3, train_loss=0.4, validation_loss=1.45, final=True
)


def preflighted_patiently(chosen: dict[str, Any]) -> StageResult:
    result = preflighted()
    assert result.preflight is not None
    hyperparameters = HYPERPARAMETERS.model_copy(update={"early_stopping_patience": 1, **chosen})
    return result.model_copy(
        update={"preflight": result.preflight.model_copy(update={"hyperparameters": hyperparameters})}
    )


def after(chosen: dict[str, Any] | None = None, **training: Any) -> MemoryCluster:
    """A run with patience and these hyperparameters, whose training ended with these facts."""
    result = trained()
    assert result.train is not None
    result = result.model_copy(update={"train": result.train.model_copy(update=training)})
    run = finetunejob(validation={"earlyStoppingPatience": 1})
    cluster = MemoryCluster(*prerequisites(), dataset(), run)
    cluster.settle()
    for stage, ended in (
        ("prepare", prepared()),
        ("preflight", preflighted_patiently(chosen or {})),
        ("train", result),
    ):
        cluster.succeed(stage, ended, after=5)
        cluster.settle()
    return cluster


def message(cluster: MemoryCluster) -> Any:
    condition = cluster.condition("FineTuneJob", JOB, "Trained")
    assert condition is not None
    return condition["message"]


def test_a_run_that_stopped_early_reports_after_how_many_steps_and_why() -> None:
    cluster = after(steps=30, stopped_early=True, checkpoints=(BEST, FINAL))

    assert message(cluster) == (
        "30 of 40 steps (stopped early: no lower validation loss for 1 epoch), 2 checkpoints"
    )


def test_its_patience_and_the_steps_that_were_planned_are_recorded() -> None:
    cluster = after(steps=30, stopped_early=True, checkpoints=(BEST, FINAL))

    hyperparameters = cluster.job(JOB).status.resolved.hyperparameters
    assert hyperparameters is not None
    assert hyperparameters.early_stopping_patience == 1
    assert hyperparameters.total_steps == 40
    assert cluster.config("train").hyperparameters.early_stopping_patience == 1


def test_an_overfitting_run_names_losses_and_the_checkpoint_to_use() -> None:
    cluster = after(steps=30, overfit=True, checkpoints=(BEST, FINAL))

    assert message(cluster) == (
        "30 steps, 2 checkpoints; validation loss rose from 1.20 after epoch 2 to 1.45 while training loss"
        " fell: the run overfits. The best checkpoint is from step 20. Use fewer epochs or more rows"
    )


def test_the_best_checkpoint_is_judged_also_where_a_later_one_is_final() -> None:
    cluster = after(steps=30, overfit=True, checkpoints=(BEST, FINAL))

    assert cluster.config("evaluate").checkpoint == BEST.digest


def test_a_run_that_does_not_overfit_does_not_mention_it() -> None:
    assert message(after()) == "40 steps, 1 checkpoint"


def test_a_run_with_smaller_batches_than_planned_reports_and_records_them() -> None:
    cluster = after(max_batch_rows=1)

    assert message(cluster) == (
        "40 steps, 1 checkpoint; batches of up to 1 row, because 4 rows at once did not fit into memory"
    )
    resolved = cluster.job(JOB).status.resolved.hyperparameters
    assert resolved is not None
    assert (resolved.batch_size, resolved.max_batch_rows) == (8, 1)
    (checkpoint,) = cluster.of("Checkpoint").values()
    assert checkpoint["spec"]["lineage"]["hyperparameters"] == resolved.to_dict()


CURVE = ((10, 2.5, None), (20, 1.5, 1.2), (30, 0.5, 1.45))


def test_a_run_that_lost_work_reports_how_much_and_where_its_report_is() -> None:
    uri = "pvc://artifacts/runs/u/train/report.html"
    cluster = after(restarts=2, lost_device_seconds=34.4, report_uri=uri)

    assert message(cluster) == (
        f"40 steps, 1 checkpoint, 2 restarts, 34 s of device time repeated; report: {uri}"
    )


def test_a_run_that_was_interrupted_without_a_loss_does_not_mention_it() -> None:
    assert message(after(restarts=2)) == "40 steps, 1 checkpoint, 2 restarts"


def test_the_figures_of_a_finished_run_stay_in_its_status() -> None:
    figures: dict[str, Any] = {
        "validation_loss": 0.2,
        "tokens_per_second": 512.5,
        "device_memory_bytes": 1 << 30,
        "restarts": 1,
        "lost_device_seconds": 12.5,
        "report_uri": "pvc://artifacts/runs/u/train/report.html",
    }
    cluster = after(loss_curve=CURVE, **figures)

    training = cluster.job(JOB).status.training
    assert training is not None
    assert training.model_dump(exclude_none=True) == {
        "steps": 40,
        "train_loss": 0.12,
        "tokens": 27000,
        **figures,
    }


def test_a_finished_run_shows_the_loss_that_training_ended_with() -> None:
    """The last report may be that of a pod that was lost."""
    cluster = after(train_loss=0.02)

    ended = cluster.job(JOB).status.progress
    assert ended is not None
    assert ended.loss == 0.02


def test_a_checkpoint_has_the_losses_up_to_its_step() -> None:
    cluster = after(steps=30, loss_curve=CURVE, checkpoints=(BEST, FINAL))

    best, final = sorted(cluster.of("Checkpoint").values(), key=lambda record: record["spec"]["step"])
    whole = [
        {"step": 10, "train": 2.5},
        {"step": 20, "train": 1.5, "validation": 1.2},
        {"step": 30, "train": 0.5, "validation": 1.45},
    ]
    assert best["spec"]["lossCurve"] == whole[:2]
    assert final["spec"]["lossCurve"] == whole


def test_the_probe_of_the_weights_is_recorded_and_reaches_the_evaluation() -> None:
    probed = BEST.model_copy(update={"probe": digest("d")})
    cluster = after(checkpoints=(probed, FINAL))

    best, final = sorted(cluster.of("Checkpoint").values(), key=lambda record: record["spec"]["step"])
    assert best["spec"]["probe"] == probed.probe
    assert "probe" not in final["spec"]
    assert cluster.config("evaluate").probe == probed.probe


def test_a_result_without_a_curve_makes_a_checkpoint_without() -> None:
    (checkpoint,) = after().of("Checkpoint").values()
    assert "lossCurve" not in checkpoint["spec"]


def test_a_run_that_learned_preferences_reports_the_reward_margin() -> None:
    rewards = {"reward_accuracy": 0.91666, "reward_margin": 1.2345}
    pairs = after(checkpoints=(FINAL.model_copy(update=rewards | {"best": True}),))
    judged = after(checkpoints=(FINAL.model_copy(update={"reward_margin": 1.2345, "best": True}),))

    assert message(pairs) == "40 steps, 1 checkpoint; reward accuracy 0.92; reward margin 1.23"
    training = pairs.job(JOB).status.training
    assert training is not None
    assert (training.reward_accuracy, training.reward_margin) == (0.91666, 1.2345)
    assert message(judged) == "40 steps, 1 checkpoint; reward margin 1.23"


def test_what_preflight_chose_for_kto_is_kept_and_trained_with() -> None:
    chosen = Preference(beta=0.2, desirable_weight=1, undesirable_weight=3)
    result = preflighted()
    assert result.preflight is not None
    result = result.model_copy(
        update={"preflight": result.preflight.model_copy(update={"preference": chosen})}
    )
    run = finetunejob(method={"objective": "KTO", "preference": {"beta": 0.2}})
    cluster = MemoryCluster(*prerequisites(), dataset(), run)
    cluster.settle()

    for stage, ended in (("prepare", prepared()), ("preflight", result)):
        cluster.succeed(stage, ended)
        cluster.settle()

    kept = cluster.objects["FineTuneJob", JOB]["status"]["resolved"]["preference"]
    assert kept == {"beta": 0.2, "desirableWeight": 1, "undesirableWeight": 3}
    assert cluster.config("train").method == Method(objective="KTO", preference=chosen)


BY_DIGEST = "registry.example/trainer@sha256:" + "e" * 64


@pytest.mark.parametrize(
    ("image_id", "shown", "recorded"),
    [
        (BY_DIGEST, BY_DIGEST, BY_DIGEST),
        (f"docker-pullable://{BY_DIGEST}", BY_DIGEST, BY_DIGEST),
        ("sha256:" + "e" * 64, None, "registry.example/trainer:1"),
        ("", None, "registry.example/trainer:1"),
    ],
)
def test_the_image_that_ran_is_recorded_by_digest(image_id: str, shown: str | None, recorded: str) -> None:
    cluster = reached("train")
    cluster.start("train")
    cluster.end("train", trained().to_json(), after=5)
    for pod in cluster.of("Pod").values():
        for status in pod["status"]["containerStatuses"]:
            status["imageID"] = image_id
    cluster.settle()

    training = cluster.job(JOB).status.training
    assert training is not None
    assert training.image == shown
    assert cluster.objects["Checkpoint", CHECKPOINT]["spec"]["lineage"]["trainerImage"] == recorded


def test_a_warning_of_preflight_is_an_event_and_in_the_condition_and_the_run_continues() -> None:
    cluster = reached("preflight")
    result = preflighted()
    assert result.preflight is not None
    warned = result.preflight.model_copy(update={"warnings": ("the adapter leaves out the experts",)})
    cluster.succeed("preflight", result.model_copy(update={"preflight": warned}), after=5)
    cluster.settle()

    condition = cluster.condition("FineTuneJob", JOB, "Preflighted")
    assert condition is not None
    assert "; the adapter leaves out the experts" in condition["message"]
    assert ("Warning", "PreflightWarning", "the adapter leaves out the experts") in [
        (event.type, event.reason, event.message) for event in cluster.events
    ]
    assert cluster.has_stage_job("train")


def test_rows_that_preflight_leaves_out_are_in_the_status_and_train_leaves_them_out() -> None:
    cluster = reached("preflight")
    config = cluster.config("preflight")
    assert config.hyperparameters.on_long_rows is None
    result = preflighted()
    assert result.preflight is not None
    dropping = result.preflight.model_copy(
        update={
            "hyperparameters": HYPERPARAMETERS.model_copy(update={"on_long_rows": "Drop"}),
            "dropped_rows": 7,
            "dropped_percent": 3.5,
        }
    )
    cluster.succeed("preflight", result.model_copy(update={"preflight": dropping}), after=5)
    cluster.settle()

    status = cluster.objects["FineTuneJob", JOB]["status"]
    assert status["droppedRows"] == {"rows": 7, "percent": 3.5}
    assert status["resolved"]["hyperparameters"]["onLongRows"] == "Drop"
    assert cluster.config("train").hyperparameters.on_long_rows == "Drop"


def test_a_run_that_turned_on_gradient_checkpointing_reports_and_records_it() -> None:
    cluster = after(max_batch_rows=1, gradient_checkpointing=True)

    assert message(cluster) == (
        "40 steps, 1 checkpoint; batches of up to 1 row, because 4 rows at once did not fit into memory"
        "; with gradient checkpointing, because a batch did not fit into memory without it"
    )
    resolved = cluster.job(JOB).status.resolved.hyperparameters
    assert resolved is not None
    assert resolved.gradient_checkpointing
    (checkpoint,) = cluster.of("Checkpoint").values()
    assert checkpoint["spec"]["lineage"]["hyperparameters"] == resolved.to_dict()


def test_a_run_with_a_smaller_token_budget_reports_and_records_it() -> None:
    cluster = after(chosen={"max_batch_tokens": 8192}, max_batch_tokens=2048)

    assert message(cluster) == (
        "40 steps, 1 checkpoint; batches of up to 2048 tokens, because 8192 tokens at once did not fit into"
        " memory"
    )
    assert cluster.config("train").hyperparameters.max_batch_tokens == 8192
    resolved = cluster.job(JOB).status.resolved.hyperparameters
    assert resolved is not None
    assert resolved.max_batch_tokens == 2048


def test_patience_in_steps_counts_validations() -> None:
    cluster = after(
        chosen={"validate_every_steps": 5}, steps=30, stopped_early=True, checkpoints=(BEST, FINAL)
    )

    assert message(cluster) == (
        "30 of 40 steps (stopped early: no lower validation loss for 1 validation), 2 checkpoints"
    )


LEARNING_CURVE = LearningCurve(
    points=tuple(
        LearningCurvePoint(
            share=share, rows=int(400 * share), loss=1 / share, loss_low=0.9 / share, loss_high=1.1 / share
        )
        for share in (0.25, 0.5, 1)
    ),
    outlook="LikelyToHelp",
    validation_rows=80,
    seconds=30,
)


def test_a_learning_curve_is_in_the_status_and_in_a_sentence() -> None:
    cluster = after(learning_curve=LEARNING_CURVE)

    training = cluster.job(JOB).status.training
    assert training is not None
    assert training.learning_curve is not None
    assert [(point.share, point.rows) for point in training.learning_curve.points] == [
        (0.25, 100),
        (0.5, 200),
        (1, 400),
    ]
    assert training.learning_curve.outlook == "LikelyToHelp"
    assert "; more rows of this kind are likely to help, by the learning curve" in message(cluster)


def test_a_learning_curve_of_a_newer_trainer_is_shortened_and_read() -> None:
    point = LEARNING_CURVE.points[0]
    newer = LEARNING_CURVE.model_copy(update={"points": (point,) * 40, "outlook": "OnlyOtherRowsHelp"})

    cluster = after(learning_curve=newer)

    training = cluster.job(JOB).status.training
    assert training is not None
    assert training.learning_curve is not None
    assert len(training.learning_curve.points) == 6
    assert "does not show" in message(cluster)
