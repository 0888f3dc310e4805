# SPDX-License-Identifier: Apache-2.0
"""What an endpoint should serve: the weights of each model name, and the revision that has them.

Without such weights or such a revision, the result is the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import (
    Follow,
    InferenceDeployment,
    Pin,
    ServedBaseModel,
    ServedModel,
    ServedModelStatus,
)
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.manifests.revision import Revision, build_revision
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.manifests.weights import WeightsReference, short_digest
from finetune_operator.reconcile.inferencedeployment.revision.engine_checks import check_engine, check_serving
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import CheckpointIndex, is_approved, is_rejected, scores_of
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.platform.profiles import check_devices, check_trainer, resolve_profile
from finetune_operator.reconcile.platform.queues import check_choice, check_queues, serving_queue
from finetune_operator.reconcile.platform.storage import check_store
from finetune_operator.status.progress import find_score
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import FULL_MODEL


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """The weights of one model name; `problem` says why they differ from what the spec requests."""

    name: str
    weights: WeightsReference | None = None
    reason: Reason | None = None
    problem: str = ""
    is_lost: bool = False
    """Whether it is served but the location of its weights is unknown, so no new revision is possible."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The models of an endpoint: one base model, and the weights of each resolved name."""

    base_digest: str | None
    models: tuple[ModelTarget, ...]
    halt: PassOutcome | None = None
    """How the pass ends if what to serve is not known yet."""

    @property
    def resolved(self) -> tuple[tuple[str, WeightsReference], ...]:
        return tuple((target.name, target.weights) for target in self.models if target.weights is not None)

    @property
    def problems(self) -> tuple[ModelTarget, ...]:
        return tuple(target for target in self.models if target.reason is not None)


def resolve(endpoint: InferenceDeployment, checkpoints: CheckpointIndex) -> Targets:
    """Resolve every model of the endpoint; an unresolved name keeps the weights that it serves now.

    The models have one base model. Without `spec.baseModel` it is that of the first model that has weights,
    but never one with which a name that is served would lose its weights.
    """
    found = {model.name: _resolve_model(model, checkpoints) for model in endpoint.spec.models}
    serving = {model.name: model for model in endpoint.status.models}
    base = _base_of(endpoint, found, checkpoints)
    targets: list[ModelTarget] = []
    for model in endpoint.spec.models:
        target = found[model.name]
        if target.weights is not None:
            target = _of_same_base(endpoint, target, target.weights, base)
        if target.weights is not None:
            base = base or (target.weights.base_model.digest if target.weights.base_model else None)
        elif model.name in serving:
            target = _as_served(target, serving[model.name], base, checkpoints)
        if model.merge and target.weights is not None:
            target = replace(target, weights=target.weights.as_merged())
        targets.append(target)
    targets = _one_full_model_only(targets)
    return Targets(base, tuple(targets))


def _base_of(
    endpoint: InferenceDeployment, found: Mapping[str, ModelTarget], checkpoints: CheckpointIndex
) -> str | None:
    """Digest of the endpoint's base model; None if the first model that has weights of it decides."""
    served, given = endpoint.status.base_model_digest, endpoint.spec.base_model
    if given is not None:
        return given.digest or _served_base(endpoint, given, checkpoints)
    bases = {
        name: target.weights.base_model.digest
        for name, target in found.items()
        if target.weights is not None and target.weights.base_model is not None
    }
    first = next(iter(bases.values()), None)
    in_use = [model.name for model in endpoint.status.models if model.name in found]
    # A name in use may have no weights of the base model that the first model has now.
    return served if any(bases.get(name) != first for name in in_use) else first or served


def _served_base(
    endpoint: InferenceDeployment, given: ServedBaseModel, checkpoints: CheckpointIndex
) -> str | None:
    """Digest of `spec.baseModel.uri` in all revisions of this endpoint since the first with this uri."""
    for model in endpoint.status.models:
        served = checkpoints.get(model.checkpoint or "")
        if served is not None:
            base = served.spec.lineage.base_model
            return base.digest if base.uri == given.uri else None
    return endpoint.status.base_model_digest


def _of_same_base(
    endpoint: InferenceDeployment, target: ModelTarget, weights: WeightsReference, base: str | None
) -> ModelTarget:
    trained_from, given = weights.base_model, endpoint.spec.base_model
    if trained_from is None:
        return target
    if given is not None and trained_from.uri != given.uri:
        problem = (
            f"checkpoint {weights.checkpoint} was trained from base model {trained_from.uri}, but"
            f" spec.baseModel.uri is {given.uri}: set it to the model that the line is trained from, or"
            " remove spec.baseModel"
        )
    elif given is not None and given.revision not in {None, trained_from.revision}:
        problem = (
            f"checkpoint {weights.checkpoint} was trained from revision {trained_from.revision} of"
            f" {given.uri}, but spec.baseModel.revision is {given.revision}: set it to that commit, or remove"
            " it"
        )
    elif base is not None and trained_from.digest != base:
        problem = (
            f"checkpoint {weights.checkpoint} was trained from base model {trained_from.uri}"
            f" ({trained_from.digest}), but this endpoint serves {base}: serve it from another"
            " InferenceDeployment, or promote a checkpoint of one base model for each model"
        )
    else:
        return target
    return ModelTarget(target.name, None, Reason.BASE_MODEL_MISMATCH, problem)


def _as_served(
    target: ModelTarget, served: ServedModelStatus, base: str | None, checkpoints: CheckpointIndex
) -> ModelTarget:
    """The weights that the name serves now, unless they are of another base model than the endpoint's."""
    record = checkpoints.live(served.checkpoint or "")
    if record is not None and base not in {None, record.spec.lineage.base_model.digest}:
        return target
    if record is not None:
        rejected = f"; {record.name} was rejected and keeps serving" if is_rejected(record) else ""
        return ModelTarget(
            target.name, WeightsReference.of(record), target.reason, f"{target.problem}{rejected}"
        )
    if served.checkpoint is not None:
        what = f"checkpoint {served.checkpoint}, whose record was deleted"
    else:
        what = f"weights {short_digest(served.digest or '')}, which no pin names now"
    return ModelTarget(
        target.name,
        None,
        Reason.CHECKPOINT_NOT_FOUND,
        f"model {target.name} serves {what}. It keeps serving, but no new revision can start until the"
        f" model has other weights ({target.problem})",
        is_lost=True,
    )


def _resolve_model(model: ServedModel, checkpoints: CheckpointIndex) -> ModelTarget:
    if model.follow is not None:
        return _followed(model.name, model.follow, checkpoints)
    return _pinned(model.name, model.pin or Pin(), checkpoints)


def _pinned(name: str, pin: Pin, checkpoints: CheckpointIndex) -> ModelTarget:
    secret = pin.credentials_secret_ref.name if pin.credentials_secret_ref else None
    if pin.uri is not None and pin.digest is not None:
        weights = WeightsReference(pin.uri, pin.digest, pin.type or "Adapter", credentials=secret)
        try:
            parse_store(weights.store)
        except ValueError as error:
            return ModelTarget(name, None, Reason.INVALID_SPEC, f"spec.models[{name}].pin.uri: {error}")
        return ModelTarget(name, weights)
    record = checkpoints.live(pin.checkpoint or "")
    if record is not None:
        recorded = WeightsReference.of(record)
        return ModelTarget(name, replace(recorded, credentials=secret or recorded.credentials))
    return ModelTarget(
        name,
        None,
        Reason.CHECKPOINT_NOT_FOUND,
        f"model {name} pins checkpoint {pin.checkpoint}, which does not exist in this namespace",
    )


def _followed(name: str, follow: Follow, checkpoints: CheckpointIndex) -> ModelTarget:
    best = checkpoints.champion(follow.model_line)
    if best is None and checkpoints.has_line(follow.model_line):
        problem = f"model line {follow.model_line} has no promoted checkpoint yet"
    elif best is None:
        problem = (
            f"model line {follow.model_line} has no Checkpoint yet: check"
            f" spec.models[{name}].follow.modelLine, or start a FineTuneJob with"
            f" spec.modelLine: {follow.model_line}"
        )
    elif follow.require_approval and not is_approved(best):
        problem = (
            f"checkpoint {best.name} is promoted but not approved: set its spec.approval.state to Approved"
        )
    else:
        missed = _missed_score(best, follow)
        if not missed:
            return ModelTarget(name, WeightsReference.of(best))
        problem = f"checkpoint {best.name} does not meet spec.models[{name}].follow.minScores: {missed}"
    return ModelTarget(name, None, Reason.WAITING_FOR_CHECKPOINT, problem)


def _missed_score(checkpoint: Checkpoint, follow: Follow) -> str:
    for required in follow.min_scores:
        measured = scores_of(checkpoint, required.evaluation)
        score = find_score(measured.scores if measured is not None else (), required.metric, "Tuned")
        where = f" by Evaluation {required.evaluation}" if required.evaluation is not None else ""
        if measured is None or score is None:
            return f"{required.metric} was not measured{where}"
        if required.dataset_version not in {None, measured.dataset_version}:
            return (
                f"{required.metric}{where} was measured on the rows of DatasetVersion"
                f" {measured.dataset_version}, not of {required.dataset_version}"
            )
        if score.value < required.min:
            return f"{required.metric}{where} is {score.value:.3f}, below {required.min:.3f}"
    return ""


def _one_full_model_only(targets: list[ModelTarget]) -> list[ModelTarget]:
    """Refuse a fully fine-tuned model next to other models, because it replaces the base model."""
    if len(targets) == 1:
        return targets
    return [
        ModelTarget(
            target.name,
            None,
            Reason.INVALID_SPEC,
            f"checkpoint {target.weights.label} {_kind(target.weights)}, so it is served instead of the base"
            " model: serve it from its own InferenceDeployment",
        )
        if target.weights is not None and target.weights.type == FULL_MODEL
        else target
        for target in targets
    ]


def _kind(weights: WeightsReference) -> str:
    return "is merged" if weights.is_merged else "has all weights, not an adapter"


def wanted_revision(
    endpoint: InferenceDeployment, targets: Targets, snapshot: Snapshot
) -> Revision | PassOutcome:
    """The revision for the resolved targets, or how the pass ends without one."""
    problems = find_unimplemented(endpoint.spec)
    if problems:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(problems))
    compute = endpoint.spec.compute
    profile = resolve_profile(compute.profile, "spec.compute.profile", endpoint.namespace, snapshot)
    if isinstance(profile, Blocked):
        return profile
    unusable = (
        _check_profile(profile, compute.devices)
        or check_choice(profile, compute)
        or check_queues(serving_queue(profile, compute), endpoint.namespace, snapshot)
    )
    if unusable is not None:
        return unusable
    if targets.halt is not None:
        return targets.halt
    lost = [target.problem for target in targets.models if target.is_lost]
    if lost:
        return Blocked(Reason.CHECKPOINT_NOT_FOUND, "; ".join(lost), requeue_after=None)
    if not targets.resolved or targets.base_digest is None:
        first = targets.problems[0]
        message = "; ".join(problem.problem for problem in targets.problems)
        if first.reason == Reason.WAITING_FOR_CHECKPOINT:
            return Working(Reason.WAITING_FOR_CHECKPOINT, message)
        return Blocked(first.reason or Reason.WAITING_FOR_CHECKPOINT, message, requeue_after=None)
    stores = sorted({weights.store for _, weights in targets.resolved})
    if len(stores) > 1:
        return Failed(
            Reason.INVALID_SPEC,
            f"the models of one endpoint must be in one store, but they are in {' and '.join(stores)}:"
            " serve them from separate InferenceDeployments",
        )
    missing = check_store(stores[0], profile, endpoint.namespace, snapshot)
    if missing is not None:
        return missing
    revision = build_revision(endpoint, targets.base_digest, targets.resolved, profile, stores[0])
    return check_serving(endpoint, revision) or revision


def _check_profile(profile: ComputeProfile, devices: int) -> PassOutcome | None:
    return (
        check_engine(profile)
        or check_trainer(profile)
        or check_devices(profile, devices, "spec.compute.devices")
    )
