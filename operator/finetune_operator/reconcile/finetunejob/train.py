# SPDX-License-Identifier: Apache-2.0
"""Train: the only stage that uses all the run's devices. Each published checkpoint becomes a record."""

from typing import get_args

from finetune_operator.api.finetune_job_status import MAX_CHECKPOINTS, CheckpointSummary
from finetune_operator.api.training import ResolvedHyperparameters
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.configs import train_config
from finetune_operator.manifests.labels import checkpoint_name, stage_job_name
from finetune_operator.manifests.records import build_checkpoint
from finetune_operator.observe.pod_status import image_by_digest
from finetune_operator.plan import Create
from finetune_operator.reconcile.finetunejob.prediction import advise, record_measured
from finetune_operator.reconcile.finetunejob.preflight import hyperparameters_of
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.passes import Failed, PassOutcome
from finetune_operator.reconcile.stages.jobs import pods_of
from finetune_operator.reconcile.stages.stage_request import fail_without_result
from finetune_operator.status.progress import add_losses
from finetune_operator.status.reasons import EventReason, Reason
from finetune_operator.status.stage_results import trained_message, training_status, used_hyperparameters
from finetune_trainer.contract.results import StageResult, TrainResult
from finetune_trainer.contract.vocabulary import CheckpointType


def train(run: RunPass) -> PassOutcome | None:
    """Train, and record the Checkpoints."""
    if run.status.checkpoints:
        return None
    resolved, hyperparameters = run.status.resolved, hyperparameters_of(run)
    if isinstance(hyperparameters, Failed):
        return hyperparameters
    result = run_stage(
        run,
        "train",
        lambda inputs: train_config(
            inputs,
            run.job.spec,
            resolved,
            hyperparameters,
            group_by=run.snapshot.group_column(resolved.dataset_version),
        ),
    )
    if not isinstance(result, StageResult):
        return result
    if result.train is None or not result.train.checkpoints:
        return fail_without_result("train")
    unknown = sorted({each.type for each in result.train.checkpoints} - set(get_args(CheckpointType)))
    if unknown:
        return Failed(
            Reason.RESULT_LOST,
            f"train published checkpoints of type {', '.join(unknown)}, which this release of the operator"
            " does not know: upgrade the operator, and create a new FineTuneJob",
        )
    _record(run, result.train, hyperparameters)
    return None


def best_checkpoint(run: RunPass) -> CheckpointSummary | Failed:
    """The Checkpoint to evaluate and promote: the best by validation loss, else the last one."""
    checkpoints = run.status.checkpoints
    marked = [c for c in checkpoints if c.best] or [c for c in checkpoints if c.final] or checkpoints
    return marked[-1] if marked else fail_without_result("train")


def _record(run: RunPass, trained: TrainResult, planned: ResolvedHyperparameters) -> None:
    hyperparameters = used_hyperparameters(trained, planned)
    job, resolved = run.job, run.status.resolved
    version = run.snapshot.datasetversions.get(resolved.dataset_version or "")
    image = _image(run)
    validation = next((s.rows for s in version.spec.splits if s.name == "validation"), 0) if version else 0
    # If a trainer publishes more than the status can hold, the best and the final checkpoint are kept.
    kept = sorted(trained.checkpoints, key=lambda c: (c.best or c.final, c.step))[-MAX_CHECKPOINTS:]
    summaries = []
    for checkpoint in sorted(kept, key=lambda c: c.step):
        record = build_checkpoint(
            job,
            checkpoint,
            store=resolved.store or "",
            store_credentials=resolved.store_credentials,
            parent_checkpoint=resolved.parent_checkpoint,
            base_model_uri=run.base_model_uri,
            base_model_digest=resolved.base_model_digest or "",
            base_model_revision=resolved.base_model_revision,
            dataset_version=resolved.dataset_version or "",
            validation_rows=validation,
            hyperparameters=hyperparameters,
            chat_template_kwargs=resolved.chat_template_kwargs,
            reasoning_parser=resolved.reasoning_parser,
            lora=resolved.lora,
            trainer_image=image or resolved.trainer_image or "",
            loss_curve=trained.loss_curve,
            cost=run.status.cost,
            recorded_at=run.snapshot.now,
        )
        run.draft.create.append(Create(record, same="Digest"))
        name = checkpoint_name(job.name, job.uid, checkpoint.step, checkpoint.digest)
        run.draft.event(EventReason.CHECKPOINT_CREATED, f"Checkpoint {name} at step {checkpoint.step}")
        summaries.append(
            CheckpointSummary(
                name=name,
                step=checkpoint.step,
                digest=checkpoint.digest,
                best=checkpoint.best,
                final=checkpoint.final,
                probe=checkpoint.probe,
            )
        )
    training = training_status(trained).model_copy(update={"image": image})
    times = next((each for each in run.status.stages if each.name == "train"), None)
    measured = record_measured(run, times, training, planned)
    advise(run, training, times)
    run.succeed("train", trained_message(trained, planned, measured), trained.steps)
    run.update(
        checkpoints=tuple(summaries),
        progress=add_losses(run.status.progress, trained),
        training=training,
        resolved=resolved.model_copy(update={"hyperparameters": hyperparameters}),
    )


def _image(run: RunPass) -> str | None:
    """The image of the train pods, by digest; None if they are gone, or no node reported the digest."""
    job = run.snapshot.children[JOB].get(stage_job_name(run.job, "train"))
    return None if job is None else image_by_digest(pods_of(job, run.snapshot))
