# SPDX-License-Identifier: Apache-2.0
"""A Deployment whose pods cannot start is created again when its ComputeProfile has changed.

`podTemplates` and `securityContext` of a profile are not part of a revision's name, so their correction makes
no new revision.
"""

from finetune_operator.engine.resources import POD
from finetune_operator.manifests.jobs import profile_version
from finetune_operator.manifests.labels import PROFILE_VERSION, REVISION
from finetune_operator.observe.podstatus import container_statuses, has_ended
from finetune_operator.plan import Delete, Manifest, Plan
from finetune_operator.reconcile.inferencedeployment.rollout.observation import state_of
from finetune_operator.reconcile.inferencedeployment.rollout.transitions import UNPROVEN
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView
from finetune_operator.reconcile.steps import Working
from finetune_operator.status.reasons import Reason


def create_again(view: EndpointView) -> Plan | None:
    """Delete the wanted revision's Deployment if a new one would have other pods. None: it stays."""
    deployment, trouble, profile = view.deployment, view.trouble, view.wanted.profile
    if deployment is None or trouble is None or trouble.reason == Reason.QUEUED:
        return None
    recorded = deployment["metadata"].get("annotations", {}).get(PROFILE_VERSION)
    if recorded in {None, profile_version(profile)} or state_of(view) not in UNPROVEN or _has_started(view):
        return None
    message = (
        f"ComputeProfile {profile.name} has changed: revision {view.wanted.name}, of which no pod has"
        " started, is created again"
    )
    return view.observed.plan(
        Working(Reason.ROLLING_OUT, message), delete=(Delete(deployment, "Background"),)
    )


def _has_started(view: EndpointView) -> bool:
    """Whether a container of the wanted revision runs or has run."""
    return any(
        has_ended(pod) or any(map(_has_run, container_statuses(pod)))
        for pod in view.snapshot.children[POD].values()
        if pod["metadata"].get("labels", {}).get(REVISION) == view.wanted.name
    )


def _has_run(status: Manifest) -> bool:
    state = status.get("state", {})
    return bool(status.get("restartCount") or status.get("lastState") or (state and "waiting" not in state))
