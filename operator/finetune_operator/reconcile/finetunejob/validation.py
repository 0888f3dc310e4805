# SPDX-License-Identifier: Apache-2.0
"""Validate a run before its first stage."""

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.training import invalid_arguments
from finetune_operator.reconcile.finetunejob.evaluate import custom_metrics_problem
from finetune_operator.reconcile.finetunejob.prerequisites import inputs_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.steps import Blocked, Failed
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved_fields import not_implemented


def validate(run: Run) -> Failed | Blocked | None:
    """Report everything that is wrong at once, and not only when the stage that needs it is due."""
    if run.status.resolved.store is not None:
        return None
    refused = _refused(run)
    if refused is not None:
        return refused
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    unusable = _unusable(found.profile, found.evaluate_profile)
    return unusable or custom_metrics_problem(run, found)


def _refused(run: Run) -> Failed | None:
    """Fields that this release does not implement, and values that the API server cannot check."""
    spec = run.job.spec
    messages = not_implemented(spec)
    if messages:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    for field, uri, _ in inputs_of(run.job):
        wrong = storage.check_source(uri, field)
        if wrong is not None:
            return wrong
    wrong_form = storage.check_form(spec.store)
    if wrong_form is not None:
        return wrong_form
    invalid = invalid_arguments(spec.chat_template_kwargs or {}, "spec.chatTemplateKwargs")
    return None if invalid is None else Failed(Reason.INVALID_SPEC, invalid)


def _unusable(*profiles: ComputeProfile) -> Blocked | None:
    """A profile with fields that this release does not implement; it does not stop a run that has begun."""
    for profile in profiles:
        messages = not_implemented(profile.spec)
        if messages:
            return Blocked(
                Reason.PROFILE_INVALID,
                f"ComputeProfile {profile.name} cannot be used. {'; '.join(messages)}",
                requeue_after=None,
            )
    return None
