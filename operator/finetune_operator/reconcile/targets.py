"""Which checkpoint each model name of an endpoint should serve, and why not where it cannot."""

from dataclasses import dataclass

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.inferencedeployment import Follow, InferenceDeployment, ServedModel
from finetune_operator.reconcile.lines import champion, is_approved
from finetune_operator.reconcile.world import CheckpointIndex
from finetune_operator.status.reasons import Reason


@dataclass(frozen=True, slots=True)
class Target:
    """What one model name serves; `problem` says why it is not what the spec asks for."""

    name: str
    checkpoint: Checkpoint | None = None
    reason: Reason | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Targets:
    """The whole endpoint's wish: one base model, and a checkpoint for each name that has one."""

    base_digest: str | None
    models: tuple[Target, ...]

    @property
    def resolved(self) -> tuple[tuple[str, Checkpoint], ...]:
        return tuple(
            (target.name, target.checkpoint) for target in self.models if target.checkpoint is not None
        )

    @property
    def problems(self) -> tuple[Target, ...]:
        return tuple(target for target in self.models if target.reason is not None)


def resolve(endpoint: InferenceDeployment, checkpoints: CheckpointIndex) -> Targets:
    """Resolve every model of the endpoint; a name that cannot be resolved keeps what it serves now."""
    base = endpoint.spec.base_model.digest or endpoint.status.base_model_digest
    serving = {model.name: model.checkpoint for model in endpoint.status.models if model.checkpoint}
    targets: list[Target] = []
    for model in endpoint.spec.models:
        target = _wanted(model, checkpoints)
        if target.checkpoint is not None:
            trained_from = target.checkpoint.spec.lineage.base_model.digest
            base = base or trained_from
            if trained_from != base:
                target = Target(
                    model.name,
                    None,
                    Reason.BASE_MODEL_MISMATCH,
                    f"checkpoint {target.checkpoint.name} was trained from base model {trained_from},"
                    f" but this endpoint serves {base}: serve it from another InferenceDeployment",
                )
        if target.checkpoint is None and model.name in serving:
            target = Target(model.name, checkpoints.get(serving[model.name]), target.reason, target.problem)
        targets.append(target)
    targets = _one_full_model_only(targets)
    return Targets(base, tuple(targets))


def _wanted(model: ServedModel, checkpoints: CheckpointIndex) -> Target:
    if model.follow is not None:
        return _followed(model.name, model.follow, checkpoints)
    name = model.pin.checkpoint if model.pin else None
    pinned = checkpoints.get(name) if name else None
    if pinned is None:
        return Target(
            model.name,
            None,
            Reason.CHECKPOINT_NOT_FOUND,
            f"model {model.name} pins checkpoint {name}, which does not exist in this namespace",
        )
    return Target(model.name, pinned)


def _followed(name: str, follow: Follow, checkpoints: CheckpointIndex) -> Target:
    best = champion(checkpoints, follow.model)
    if best is None:
        problem = f"model line {follow.model} has no promoted checkpoint yet"
    elif follow.require_approval and not is_approved(best):
        problem = (
            f"checkpoint {best.name} is promoted but not approved: set its spec.approval.state to Approved"
        )
    else:
        missed = _missed_score(best, follow)
        if not missed:
            return Target(name, best)
        problem = f"checkpoint {best.name} does not meet spec.models[{name}].follow.minScores: {missed}"
    return Target(name, None, Reason.WAITING_FOR_CHECKPOINT, problem)


def _missed_score(checkpoint: Checkpoint, follow: Follow) -> str:
    if not follow.min_scores:
        return ""
    scores = {
        score.metric: score.value
        for evaluation in checkpoint.status.evaluations
        for score in evaluation.scores
        if score.subject == "Tuned"
    }
    for wanted in follow.min_scores:
        value = scores.get(wanted.metric)
        if value is None:
            return f"{wanted.metric} was not measured"
        if value < wanted.min:
            return f"{wanted.metric} is {value:.3f}, below {wanted.min:.3f}"
    return ""


def _one_full_model_only(targets: list[Target]) -> list[Target]:
    """A fully fine-tuned model takes the base's place, so it cannot share an endpoint with others."""
    if len(targets) == 1:
        return targets
    return [
        Target(
            target.name,
            None,
            Reason.INVALID_SPEC,
            f"checkpoint {target.checkpoint.name} holds all weights, not an adapter:"
            " give it an InferenceDeployment of its own",
        )
        if target.checkpoint is not None and target.checkpoint.spec.type == "Full"
        else target
        for target in targets
    ]
