# SPDX-License-Identifier: Apache-2.0
"""Score: add the user's metrics to what an evaluation measured."""

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.manifests.locations import parse_store
from finetune_operator.manifests.scoreconfig import score_config
from finetune_operator.reconcile.finetunejob.prerequisites import Prerequisites
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.stage import run_stage, without_result
from finetune_operator.reconcile.stages.usage import reopen
from finetune_operator.reconcile.steps import Blocked, Failed, Halt
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import EvaluateResult, StageResult


def with_custom_metrics(run: Run, spec: EvaluationSpec, evaluated: EvaluateResult) -> EvaluateResult | Halt:
    """The result of evaluate with the scores of the user's metrics, or how the pass ends."""
    if not spec.custom_metrics:
        return evaluated
    digests = {source.name: source.digest for source in run.status.resolved.custom_metrics or ()}
    group_by = run.snapshot.group_column(run.status.resolved.dataset_version)
    result = run_stage(
        run,
        "score",
        lambda inputs: _unpermitted(run) or score_config(inputs, spec, digests, group_by=group_by),
    )
    if not isinstance(result, StageResult):
        return result
    if result.score is None:
        return without_result("score")
    return evaluated.model_copy(
        update={
            "scores": (*evaluated.scores, *result.score.scores),
            "evidence": (*evaluated.evidence, *result.score.evidence),
        }
    )


def score_again(run: Run) -> None:
    """Continue the times of the stage, if it has run: its result is that of an earlier evaluation."""
    reopen(run, "score")


def check_custom_metrics(spec: EvaluationSpec | None, found: Prerequisites) -> Failed | Blocked | None:
    """Why the run may not use metrics of its own; None if it may, or has none."""
    if spec is None or not spec.custom_metrics:
        return None
    if parse_store(found.store.uri) is None:
        return Failed(
            Reason.INVALID_SPEC,
            "spec.evaluation.customMetrics needs a store on a claim: its pod has no network to read"
            f" {found.store.uri}. Remove customMetrics, or create a new run with a pvc:// store",
        )
    return _not_allowed(found.evaluate_profile)


def _unpermitted(run: Run) -> Blocked | None:
    """Why the Job may not start. The profile may have changed since the start of the run."""
    found = run.prerequisites
    return found if isinstance(found, Blocked) else _not_allowed(found.evaluate_profile)


def _not_allowed(profile: ComputeProfile) -> Blocked | None:
    if profile.spec.allow.custom_code:
        return None
    return Blocked(
        Reason.CUSTOM_CODE_NOT_ALLOWED,
        f"ComputeProfile {profile.name} does not allow spec.evaluation.customMetrics: ask the platform team"
        " to set its allow.customCode to true, or create a new run without them",
        requeue_after=None,
    )
