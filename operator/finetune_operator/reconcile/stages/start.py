# SPDX-License-Identifier: Apache-2.0
"""Create the Job that `advance` needs."""

from finetune_operator.engine.resources import NETWORK_POLICY, SERVICE
from finetune_operator.plan import Create, Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.stages.request import Outcome, StageRequest, StartNeeded
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_operator.status.reasons import EventReason


def start(
    draft: Draft, request: StageRequest, needed: StartNeeded, job: Manifest | Blocked | Failed | Working
) -> Outcome:
    """Create the Job, and before a stage's own Job what its pods need of each other.

    Args:
        job: what the caller built for `needed.purpose`, or why it cannot be built now.
    """
    if isinstance(job, Blocked | Failed | Working):
        return job
    if needed.purpose == "stage":
        add_peer_objects(draft, request)
        if request.peers is not None:
            draft.create.append(Create(request.peers.key, same="Unread"))
        draft.event(
            EventReason.STAGE_STARTED, f"{request.stage} started as Job {request.names.stage}{request.note}"
        )
    draft.start_job(job)
    return needed.then


def add_peer_objects(draft: Draft, request: StageRequest) -> None:
    """Create the Service and the NetworkPolicies of the stage's pods if they do not exist."""
    services, policies = draft.snapshot.children[SERVICE], draft.snapshot.children[NETWORK_POLICY]
    wanted = [] if request.isolation is None else [(request.isolation, policies)]
    if request.peers is not None:
        wanted += [(request.peers.service, services), (request.peers.policy, policies)]
    draft.create += [
        Create(manifest) for manifest, existing in wanted if manifest["metadata"]["name"] not in existing
    ]
