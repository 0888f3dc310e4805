# SPDX-License-Identifier: Apache-2.0
"""A Deployment whose pods cannot start is created again if a new one would have other pods.

Most fields of the profile's `pods` are not part of a revision's name, so their correction makes no new
revision.
"""

from finetune_operator.engine.resources import POD
from finetune_operator.manifests.endpoint import build_deployment
from finetune_operator.manifests.labels import REVISION
from finetune_operator.manifests.pod_shape import changed_origin
from finetune_operator.observe.pod_status import has_started
from finetune_operator.plan import Delete, Plan
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import UNPROVEN
from finetune_operator.reconcile.inferencedeployment.rollout.observation import has_slot, is_held, state_of
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView
from finetune_operator.reconcile.steps import Working
from finetune_operator.status.reasons import Reason


def create_again(view: EndpointView) -> Plan | None:
    """Delete the wanted revision's Deployment, so that another pass creates it. None: it stays.

    It stays if another one would not be created at once.
    """
    deployment, trouble, facts = view.deployment, view.trouble, view.snapshot.facts
    if deployment is None or trouble is None or trouble.reason == Reason.QUEUED:
        return None
    if state_of(view) not in UNPROVEN or is_held(view) or not has_slot(view) or _has_started(view):
        return None
    cause = changed_origin(
        deployment,
        build_deployment(view.endpoint, view.wanted, facts.trainer_image, facts.image_pull_policy),
        images_count=trouble.reason == Reason.IMAGE_UNAVAILABLE,
    )
    if cause is None:
        return None
    message = (
        f"revision {view.wanted.name}, of which no pod has started, is created again: {cause} has changed"
    )
    return view.observed.plan(
        Working(Reason.ROLLING_OUT, message), delete=(Delete(deployment, "Background"),)
    )


def _has_started(view: EndpointView) -> bool:
    """Whether a container of the wanted revision runs or has run."""
    return any(
        has_started(pod)
        for pod in view.snapshot.children[POD].values()
        if pod["metadata"].get("labels", {}).get(REVISION) == view.wanted.name
    )
