# SPDX-License-Identifier: Apache-2.0
"""Determine the revision that an endpoint should serve, or why there is none."""

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.revision import Revision, build_revision
from finetune_operator.reconcile.inferencedeployment.revision.enginechecks import check_engine, check_serving
from finetune_operator.reconcile.inferencedeployment.revision.targets import Targets
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform.profiles import check_devices, check_trainer, resolve_profile
from finetune_operator.reconcile.platform.queues import check_choice, check_queues, serving_queue
from finetune_operator.reconcile.platform.storage import check_store
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved_fields import not_implemented


def wanted_revision(endpoint: InferenceDeployment, targets: Targets, snapshot: Snapshot) -> Revision | Halt:
    """The revision for the resolved targets, or how the pass ends without one."""
    problems = not_implemented(endpoint.spec)
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


def _check_profile(profile: ComputeProfile, devices: int) -> Halt | None:
    return (
        check_engine(profile)
        or check_trainer(profile)
        or check_devices(profile, devices, "spec.compute.devices")
    )
