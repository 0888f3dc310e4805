# SPDX-License-Identifier: Apache-2.0
"""Preflight: check that base model and data fit, and choose the hyperparameters, without devices."""

from finetune_operator.api.finetune_job_status import DroppedRows
from finetune_operator.api.training import Preference, ResolvedHyperparameters, ResolvedLoRA
from finetune_operator.manifests.configs import preflight_config
from finetune_operator.reconcile.features.registry import config_fields, keep_sources
from finetune_operator.reconcile.finetunejob.prediction import record_prediction
from finetune_operator.reconcile.finetunejob.run import RunPass
from finetune_operator.reconcile.finetunejob.stage import run_stage
from finetune_operator.reconcile.passes import Failed, PassOutcome
from finetune_operator.reconcile.stages.stage_request import fail_without_result
from finetune_operator.status.reasons import EventReason
from finetune_trainer.contract.results import StageResult


def preflight(run: RunPass) -> PassOutcome | None:
    """Resolve the base model's digest and the hyperparameters."""
    resolved = run.status.resolved
    if resolved.base_model_digest is not None and resolved.hyperparameters is not None:
        return None
    # A rule of the API server keeps the field immutable, except that it overlooks a renamed argument.
    run.resolve(chat_template_kwargs=run.job.spec.chat_template_kwargs)
    features = config_fields("preflight", run.job.spec.evaluation, run.status.resolved)
    result = run_stage(
        run, "preflight", lambda inputs: preflight_config(inputs, run.job.spec, run.status.resolved, features)
    )
    if not isinstance(result, StageResult):
        return result
    found = result.preflight
    if found is None:
        return fail_without_result("preflight")
    run.resolve(
        base_model_digest=found.base_model,
        base_model_revision=found.base_model_revision,
        hyperparameters=ResolvedHyperparameters(**found.hyperparameters.model_dump()),
        lora=ResolvedLoRA(**found.lora.model_dump()) if found.lora is not None else None,
        reasoning_parser=found.reasoning_parser,
        preference=Preference(**found.preference.model_dump()) if found.preference is not None else None,
    )
    keep_sources(run, found)
    if found.leaked_rows:
        run.update(leaked_rows=found.leaked_rows)
    if found.dropped_rows:
        run.update(dropped_rows=DroppedRows(rows=found.dropped_rows, percent=found.dropped_percent))
    truncated = (
        f", {found.truncated_rows} rows truncated to maxSequenceLength" if found.truncated_rows else ""
    )
    parent = f"; continues from Checkpoint {resolved.parent_checkpoint}" if resolved.parent_checkpoint else ""
    if parent and run.job.spec.chat_template_kwargs is not None:
        parent += " with other chatTemplateKwargs than that Checkpoint"
    warnings = "".join(f"; {warning}" for warning in found.warnings)
    predicted = record_prediction(run, found.prediction)
    lengths = f"; lengths: {found.report_uri}" if found.report_uri else ""
    run.succeed(
        "preflight",
        f"{found.train_rows} training rows with {found.train_tokens} tokens{truncated};"
        f" chat template: {found.chat_template}{parent}{warnings}{predicted}{lengths}",
    )
    for warning in found.warnings:
        run.draft.event(EventReason.PREFLIGHT_WARNING, warning, "Warning")
    return None


def hyperparameters_of(run: RunPass) -> ResolvedHyperparameters | Failed:
    """The hyperparameters that preflight has resolved."""
    return run.status.resolved.hyperparameters or fail_without_result("preflight")
