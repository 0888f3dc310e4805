# SPDX-License-Identifier: Apache-2.0
"""The events that a pass reads about Jobs without pods."""

from finetune_operator.engine.resources import EVENT, JOB
from finetune_operator.observe.job_problems import ASK_AFTER, lacks_a_pod, started_at
from finetune_operator.observe.pod_status import newest_per_index
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.secondaries import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished


def refusal_needs(snapshot: Snapshot) -> Needs:
    """Events of the object's Jobs that have lacked a pod for a while, by the Job's uid."""
    waiting = [job for job in snapshot.children[JOB].values() if _awaits_a_pod(job, snapshot)]
    return {EVENT: frozenset(job["metadata"]["uid"] for job in waiting)} if waiting else NOTHING


def _awaits_a_pod(job: Manifest, snapshot: Snapshot) -> bool:
    started = started_at(job)
    if started is None or snapshot.now - started < ASK_AFTER:
        return False
    if job.get("spec", {}).get("suspend") or "deletionTimestamp" in job["metadata"]:
        return False
    return is_unfinished(job) and lacks_a_pod(job, newest_per_index(pods_of(job, snapshot)))
