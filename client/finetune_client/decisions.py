# SPDX-License-Identifier: Apache-2.0
"""Decisions of a person about Checkpoints, endpoints and runs: what each changes, and what follows from it.

What follows is decided by the rules of the operator itself.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from finetune_client.backend import Object
from finetune_client.errors import OperationError, ProgramExit
from finetune_operator.api.checkpoint import Approval, Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment, RevisionStatus
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    REJECTED_STATES,
    TRANSITIONS,
    Action,
)
from finetune_operator.reconcile.model_lines import CheckpointIndex, scores_of
from finetune_operator.reconcile.promotion import decide_promotion
from finetune_operator.reconcile.verdicts import verdict_text
from finetune_operator.status.conditions import is_cancelled, is_finished
from finetune_operator.status.reasons import Reason


@dataclass(frozen=True, slots=True)
class SpecChange:
    """A change of the spec of one object.

    Attributes:
        spec: JSON merge patch of the spec; empty if there is nothing to change.
        done: the change as a sentence, or why there is none.
        next: sentences about what happens now.
        follow: command that shows it on a cluster.
    """

    kind: str
    name: str
    spec: Object
    done: str
    next: tuple[str, ...] = ()
    follow: str = ""


def judge(
    state: Literal["Approved", "Rejected"],
    checkpoint: Checkpoint,
    reason: str,
    line: Sequence[Checkpoint],
    endpoints: Sequence[InferenceDeployment] | None,
) -> SpecChange:
    """Approve or reject a Checkpoint.

    Args:
        state: the decision.
        checkpoint: the Checkpoint.
        reason: recorded with the decision.
        line: all Checkpoints of its namespace; those of its model line matter.
        endpoints: all endpoints of its namespace; None if the user may not read them.
    """
    judged = checkpoint.model_copy(
        update={"spec": checkpoint.spec.model_copy(update={"approval": Approval(state=state, reason=reason)})}
    )
    index = CheckpointIndex(each for each in line if each.name != checkpoint.name)
    index.put(judged)
    decide = _approved if state == "Approved" else _rejected
    return SpecChange(
        "Checkpoint",
        checkpoint.name,
        {"approval": {"state": state, "reason": reason}},
        f"Checkpoint {checkpoint.name} is {state.lower()}: {reason}",
        tuple(decide(judged, index, endpoints)),
        f"kubectl -n {checkpoint.namespace} get checkpoint {checkpoint.name} --watch",
    )


def _approved(
    checkpoint: Checkpoint, index: CheckpointIndex, endpoints: Sequence[InferenceDeployment] | None
) -> list[str]:
    line = checkpoint.spec.model_line
    champion = index.champion_name(line)
    if champion == checkpoint.name:
        return [f"It is the champion of model line {line}.", *_followers(checkpoint, endpoints)]
    if checkpoint.status.promoted_at is not None:
        return [f"It was promoted before; {champion}, which was promoted later, stays the champion."]
    # Only an approval that the run does not need is decided without the run, which an approver may not read.
    decision = decide_promotion(checkpoint, None, index)
    if decision.reason != Reason.PROMOTED:
        return [f"It is not promoted: {decision.message}."]
    return [
        *_overridden(checkpoint),
        f"The operator promotes it within seconds: it becomes the champion of model line {line}.",
        *_followers(checkpoint, endpoints),
    ]


def _overridden(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The verdict that an approval overrides."""
    measured = scores_of(checkpoint)
    if measured is None or measured.verdict in {"Passed", "NoGates"}:
        return ()
    return (f"It overrides the verdict of its run, which is {measured.verdict}: {verdict_text(measured)}",)


def _rejected(
    checkpoint: Checkpoint, index: CheckpointIndex, endpoints: Sequence[InferenceDeployment] | None
) -> list[str]:
    line = checkpoint.spec.model_line
    champion = index.champion_name(line)
    if checkpoint.status.promoted_at is None:
        sentences = ["It was not promoted, and is not promoted while it is rejected."]
    elif champion is None:
        stays = "Endpoints that serve it keep serving it: scale them to 0 replicas to stop them."
        sentences = [f"Model line {line} has no champion now. {stays}"]
    else:
        sentences = [
            f"{champion} is the champion of model line {line}.",
            *_followers(checkpoint, endpoints),
        ]
    pinned = _pinning(checkpoint, endpoints or ())
    if pinned:
        sentences.append(f"Pins are not affected: {', '.join(pinned)} keeps serving it.")
    return sentences


def _followers(checkpoint: Checkpoint, endpoints: Sequence[InferenceDeployment] | None) -> tuple[str, ...]:
    line = checkpoint.spec.model_line
    if endpoints is None:
        return (f"Endpoints that follow {line} take the champion.",)
    names = followers_of(line, endpoints)
    if not names:
        return (f"No endpoint follows {line}.",)
    return (
        f"Endpoints that follow {line} take the champion if it meets their minScores: {', '.join(names)}.",
    )


def followers_of(line: str, endpoints: Sequence[InferenceDeployment]) -> list[str]:
    """Names of the endpoints with a model that follows this model line."""
    return sorted(
        endpoint.name
        for endpoint in endpoints
        if any(model.follow and model.follow.model_line == line for model in endpoint.spec.models)
    )


def _pinning(checkpoint: Checkpoint, endpoints: Sequence[InferenceDeployment]) -> list[str]:
    return sorted(
        endpoint.name
        for endpoint in endpoints
        if any(model.pin and model.pin.checkpoint == checkpoint.name for model in endpoint.spec.models)
    )


def evaluated_checkpoint(job: FineTuneJob) -> str:
    """The Checkpoint that a decision about a run concerns: the one that it evaluated, or its only one.

    Raises:
        OperationError: there is none, or there are several and the run evaluated none of them.
    """
    if job.status.evaluation is not None:
        return job.status.evaluation.checkpoint
    names = [each.name for each in job.status.checkpoints]
    if len(names) == 1:
        return names[0]
    if not names:
        raise OperationError(
            f"FineTuneJob {job.name} has no Checkpoint yet: wait until it has trained",
            [f"finetune watch {job.name}"],
        )
    raise OperationError(
        f"FineTuneJob {job.name} has {len(names)} Checkpoints and evaluated none of them: name one",
        details=names,
        exit_code=ProgramExit.INVALID,
    )


def cancel(job: FineTuneJob) -> SpecChange:
    """Cancel a run for good."""
    follow = f"kubectl -n {job.namespace} get finetunejob {job.name} --watch"
    if is_finished(job):
        return _unchanged(job, f"has already {_end(job)}: there is nothing to cancel")
    if job.spec.cancel:
        return _unchanged(job, "is being cancelled already")
    return SpecChange(
        "FineTuneJob",
        job.name,
        {"cancel": True},
        f"FineTuneJob {job.name} is being cancelled.",
        (
            "Its pods save their state, end and free their devices. Its Checkpoints stay.",
            "It never starts again: to train again, create a FineTuneJob with another name.",
        ),
        follow,
    )


def suspend(job: FineTuneJob) -> SpecChange:
    """Suspend a run, which can be resumed."""
    if is_finished(job):
        return _unchanged(job, f"has already {_end(job)}: there is nothing to suspend")
    if job.spec.cancel:
        return _unchanged(job, "is being cancelled")
    if job.spec.suspend:
        return _unchanged(job, "is suspended already")
    return SpecChange(
        "FineTuneJob",
        job.name,
        {"suspend": True},
        f"FineTuneJob {job.name} is being suspended.",
        (
            "Its pods save their state, end and free their devices.",
            "To continue it, run finetune resume.",
        ),
        f"kubectl -n {job.namespace} get finetunejob {job.name} --watch",
    )


def resume(job: FineTuneJob) -> SpecChange:
    """Resume a suspended run.

    Raises:
        OperationError: it was cancelled, and never starts again.
    """
    if is_cancelled(job) or job.spec.cancel:
        raise OperationError(
            f"FineTuneJob {job.name} is cancelled and never starts again: create one with another name"
        )
    if is_finished(job):
        return _unchanged(job, f"has already {_end(job)}")
    if not job.spec.suspend:
        return _unchanged(job, "is not suspended")
    return SpecChange(
        "FineTuneJob",
        job.name,
        {"suspend": False},
        f"FineTuneJob {job.name} is being resumed.",
        ("It continues from its last saved state as soon as there are devices for it.",),
        f"finetune watch {job.name}",
    )


def _unchanged(job: FineTuneJob, why: str) -> SpecChange:
    return SpecChange("FineTuneJob", job.name, {}, f"FineTuneJob {job.name} {why}.")


def _end(job: FineTuneJob) -> str:
    """How it ended, as a participle."""
    return {"Succeeded": "succeeded", "Cancelled": "been cancelled"}.get(job.status.phase, "failed")


ABORTABLE: Final = frozenset(
    state for (state, _), (_, action) in TRANSITIONS.items() if action is Action.ABORT
)
"""States of a revision that a decision can abort."""
SERVED: Final = frozenset({"Passed", "Promoted"})
"""Verdicts on revisions that have served."""


def rollback(
    endpoint: InferenceDeployment,
    manifest: Object,
    to: str | None,
    reason: str,
    exists: Callable[[str], bool],
) -> SpecChange:
    """Return an endpoint to an earlier revision.

    A revision that rolls out or bakes is aborted by `strategy.decision`. Otherwise the Checkpoints of the
    earlier revision are pinned.

    Args:
        endpoint: the endpoint.
        manifest: the same as JSON. Its `spec.models` are changed, because a merge patch replaces lists.
        to: name of the revision; None selects the one before.
        reason: recorded in a decision.
        exists: whether a Checkpoint exists.

    Raises:
        OperationError: there is nothing to return to, or not to the revision `to`.
    """
    revisions = endpoint.status.revisions
    active = next((each for each in revisions if each.state in ABORTABLE), None)
    target = None if to is None else _named(endpoint, to)
    if active is not None and (target is None or target.state in {"Live", "Standby"}):
        return _abort(endpoint, active, reason)
    if target is not None and target.state in ABORTABLE:
        raise OperationError(
            f"revision {target.name} of {endpoint.name} is {target.state}: without --to, rollback aborts it",
            exit_code=ProgramExit.INVALID,
        )
    if target is not None and target.name == endpoint.status.revision:
        return SpecChange(
            "InferenceDeployment",
            endpoint.name,
            {},
            f"Revision {target.name} of {endpoint.name} serves already.",
        )
    return _pin(endpoint, manifest, target or _before(endpoint), exists)


def _named(endpoint: InferenceDeployment, name: str) -> RevisionStatus:
    found = next((each for each in endpoint.status.revisions if each.name == name), None)
    if found is None:
        raise OperationError(
            f"InferenceDeployment {endpoint.name} lists no revision {name}; its last revisions are:",
            details=_listed(endpoint),
            exit_code=ProgramExit.INVALID,
        )
    return found


def _before(endpoint: InferenceDeployment) -> RevisionStatus:
    """The newest earlier revision that has served other Checkpoints."""
    now = _served(endpoint)
    for each in endpoint.status.revisions:
        has_served = each.verdict is not None and each.verdict.result in SERVED
        is_candidate = each.name != endpoint.status.revision and each.state not in REJECTED_STATES
        models = {model.name: model.checkpoint for model in each.models if model.checkpoint}
        if (
            has_served
            and is_candidate
            and any(now.get(name) not in {None, at} for name, at in models.items())
        ):
            return each
    raise OperationError(
        f"InferenceDeployment {endpoint.name} has no earlier revision that served other Checkpoints."
        " A change of other settings is undone by applying the earlier manifest. Its last revisions are:",
        details=_listed(endpoint),
    )


def _listed(endpoint: InferenceDeployment) -> tuple[str, ...]:
    lines = []
    for each in endpoint.status.revisions:
        result = f", {each.verdict.result}" if each.verdict is not None else ""
        models = ", ".join(f"{model.name} = {model.checkpoint or model.digest}" for model in each.models)
        lines.append(f"{each.name}  {each.state}{result}  {models}".rstrip())
    return tuple(lines) or ("none",)


def _served(endpoint: InferenceDeployment) -> dict[str, str]:
    """By model name, the Checkpoint or the digest that is served now."""
    return {model.name: model.checkpoint or model.digest or "" for model in endpoint.status.models}


def _abort(endpoint: InferenceDeployment, revision: RevisionStatus, reason: str) -> SpecChange:
    others = (each.name for each in endpoint.status.revisions if each.state in {"Live", "Standby"})
    stable = next(others, None)
    decisions = (endpoint.spec.strategy.decision, endpoint.status.decision)
    same = [each for each in decisions if each and (each.revision, each.verdict) == (revision.name, "Abort")]
    # A decision is obeyed once. Another one about the same revision needs a higher generation.
    decision: dict[str, Any] = {
        "revision": revision.name,
        "verdict": "Abort",
        "generation": max((each.generation + 1 for each in same), default=1),
        "reason": reason,
    }
    returns = f"The requests return to {stable}." if stable else "No other revision serves."
    retries = (
        f"{revision.name} is not tried again until the spec is edited, another Checkpoint is promoted, or a"
        " decision has the verdict Promote."
    )
    return SpecChange(
        "InferenceDeployment",
        endpoint.name,
        {"strategy": {"decision": decision}},
        f"Revision {revision.name} of {endpoint.name}, which is {revision.state}, is aborted.",
        (returns, retries),
        _watch(endpoint),
    )


def _pin(
    endpoint: InferenceDeployment, manifest: Object, revision: RevisionStatus, exists: Callable[[str], bool]
) -> SpecChange:
    wanted = {model.name: model for model in revision.models}
    now = _served(endpoint)
    models, pinned, lines = [], [], []
    before: list[Object] = manifest["spec"].get("models") or []
    for model in before:
        target = wanted.get(model["name"])
        if target is None or now.get(model["name"]) == (target.checkpoint or target.digest):
            models.append(model)
            continue
        if target.checkpoint is None:
            raise OperationError(
                f"revision {revision.name} served {target.name} with weights that were pinned by their uri:"
                f" pin them again in spec.models; their digest is {target.digest}"
            )
        if not exists(target.checkpoint):
            raise OperationError(
                f"Checkpoint {target.checkpoint} of revision {revision.name} was deleted: choose another"
                " revision with --to",
                details=_listed(endpoint),
            )
        others = {key: value for key, value in model.items() if key not in {"follow", "pin"}}
        models.append(others | {"pin": {"checkpoint": target.checkpoint}})
        pinned.append(f"{target.name} = {target.checkpoint} (now {now.get(target.name, 'nothing')})")
        lines += [model["follow"]["modelLine"]] if "follow" in model else []
    if not pinned:
        raise OperationError(
            f"revision {revision.name} of {endpoint.name} served the same Checkpoints as now: apply the"
            " earlier manifest to undo a change of other settings",
            details=_listed(endpoint),
        )
    sentences = []
    if endpoint.spec.strategy.paused:
        sentences.append("spec.strategy.paused is true: the revision starts when it is false again.")
    if lines:
        patch = json.dumps({"spec": {"models": before}})
        sentences.append(
            f"It no longer follows model line {', '.join(lines)}: new champions do not change it. To follow"
            f" again: kubectl -n {endpoint.namespace} patch infd {endpoint.name} --type merge -p '{patch}'"
        )
    return SpecChange(
        "InferenceDeployment",
        endpoint.name,
        {"models": models},
        f"InferenceDeployment {endpoint.name} returns to the Checkpoints of revision {revision.name}:"
        f" {'; '.join(pinned)}.",
        ("A revision with them starts next to the one that serves, by spec.strategy.", *sentences),
        _watch(endpoint),
    )


def _watch(endpoint: InferenceDeployment) -> str:
    return f"kubectl -n {endpoint.namespace} get infd {endpoint.name} --watch"
