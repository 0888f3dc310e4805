# SPDX-License-Identifier: Apache-2.0
"""The Jobs of stages as the cluster shows them: their state, their pods, and the results of these.

Users who can create pods or Jobs in a namespace can give them any label and owner. The operator accepts a
result only if it names the right run and stage, and repeats the nonce and the config digest of the Job.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.labels import STAGE
from finetune_operator.engine.resources import EVENT, JOB, POD
from finetune_operator.manifests.labels import CONFIG_DIGEST, NONCE
from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import ASK_AFTER, find_start, lacks_a_pod
from finetune_operator.observe.pod_status import (
    container_state,
    describe_pod,
    newest_per_index,
    parse_time,
    stage_of,
)
from finetune_operator.observe.pod_status import has_ended as has_pod_ended
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Working
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ResultStage

SETTLING_TIME: Final = timedelta(seconds=10)
"""How long a missing result does not count as lost: a Job's end can arrive before its pod's last state."""


def has_ended(job: Manifest, how: str) -> bool:
    """Whether the Job has the condition `Complete` or `Failed`."""
    return any(
        condition["type"] == how and condition["status"] == "True"
        for condition in job.get("status", {}).get("conditions") or ()
    )


def is_unfinished(job: Manifest) -> bool:
    """Whether the Job can still have or start a running pod."""
    return not has_ended(job, "Complete") and not has_ended(job, "Failed")


def is_stage_running(snapshot: Snapshot) -> bool:
    """Whether a stage's Job is unfinished, so that the pass creates nothing."""
    return any(is_unfinished(job) and has_result(job) for job in snapshot.children[JOB].values())


def has_result(job: Manifest) -> bool:
    """Whether the Job runs a stage with a result, and does not work for another stage."""
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.running is not None


def running_orphans(snapshot: Snapshot, job: str) -> list[Manifest]:
    """Pods that still run after their Job of this name was deleted. No other pod may run next to them."""
    return [pod for pod in snapshot.orphans.get(job, ()) if not has_pod_ended(pod)]


def wait_until_ended(pods: Iterable[Manifest], reason: str, message: str, now: datetime) -> Working | Blocked:
    """Wait for pods that are being deleted; report a lost node, on which a pod cannot end."""
    overdue: list[float] = []
    for pod in pods:
        trouble = pod_termination.node_trouble(pod, describe_pod(stage_of(pod), pod), now)
        if trouble is not None:
            return Blocked(trouble.reason, trouble.message, None)
        seconds = pod_termination.seconds_until_overdue(pod, now)
        overdue += [seconds] if seconds is not None else []
    return Working(reason, message, min(overdue, default=None))


def ended_at(job: Manifest, how: str) -> datetime:
    """Time at which the Job got the condition `Complete` or `Failed`, which it has."""
    return next(
        parse_time(condition["lastTransitionTime"])
        for condition in job["status"]["conditions"]
        if condition["type"] == how and condition["status"] == "True"
    )


def report_foreign_job(job: Manifest) -> Blocked:
    """How a pass ends if someone else created a Job with the name of an operator's Job."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    return Blocked(
        Reason.NAME_CONFLICT,
        f"Job {name} has the name and owner of a Job of the operator, but the operator did not create it."
        f" Find out who created it, and delete it (kubectl delete job {name} -n {namespace}); the operator"
        " then creates its own",
    )


JOB_UID: Final = "batch.kubernetes.io/controller-uid"
"""Label that the Job controller sets on the pods that it creates."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a result must repeat."""

    run: str
    stage: ResultStage


def pods_of(job: Manifest, snapshot: Snapshot) -> list[Manifest]:
    """The pods that the Job controller created for the Job, newest first."""
    uid = job["metadata"]["uid"]
    pods = [pod for pod in snapshot.children[POD].values() if _is_created_for(pod, uid)]
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)


def _is_created_for(pod: Manifest, uid: str) -> bool:
    metadata = pod["metadata"]
    owners = metadata.get("ownerReferences", ())
    is_controlled = any(owner["uid"] == uid and owner.get("controller") for owner in owners)
    return is_controlled and metadata.get("labels", {}).get(JOB_UID) == uid


def is_foreign(job: Manifest) -> bool:
    """Whether the Job lacks the nonce that the operator gives to the Job of every stage."""
    return NONCE not in job["metadata"].get("annotations", {})


def result_of(pod: Manifest, job: Manifest, expected: Expected) -> StageResult | None:
    """The pod's termination message, if it is a result of this stage and this Job."""
    message = container_state(pod).get("terminated", {}).get("message", "")
    result = StageResult.parse(message) if message else None
    if result is None or (result.run, result.stage) != (expected.run, expected.stage):
        return None
    return result if _is_bound(result, job) else None


def _is_bound(result: StageResult, job: Manifest) -> bool:
    annotations = job["metadata"].get("annotations", {})
    nonce, digest = annotations.get(NONCE), annotations.get(CONFIG_DIGEST)
    if nonce is None or result.nonce != nonce:
        return False
    # Not every stage binds its config, and a config that could not be read has no digest.
    return digest is None or result.config_digest == digest or result.outcome == "Failed"


def find_success(pods: list[Manifest], job: Manifest, expected: Expected) -> StageResult | None:
    """The result of the pod that succeeded; earlier pods of the Job may have failed."""
    results = (result_of(pod, job, expected) for pod in pods)
    return next((result for result in results if result and result.outcome == "Succeeded"), None)


def find_last_result(pods: list[Manifest], job: Manifest, expected: Expected) -> StageResult | None:
    """The result of the pod whose end decides; earlier pods may have failed for another reason."""
    pod = pod_termination.deciding_pod(pods)
    return None if pod is None else result_of(pod, job, expected)


def refusal_needs(snapshot: Snapshot) -> Needs:
    """Events of the object's Jobs that have lacked a pod for a while, by the Job's uid."""
    waiting = [job for job in snapshot.children[JOB].values() if _awaits_a_pod(job, snapshot)]
    return {EVENT: frozenset(job["metadata"]["uid"] for job in waiting)} if waiting else NOTHING


def _awaits_a_pod(job: Manifest, snapshot: Snapshot) -> bool:
    started = find_start(job)
    if started is None or snapshot.now - started < ASK_AFTER:
        return False
    if job.get("spec", {}).get("suspend") or "deletionTimestamp" in job["metadata"]:
        return False
    return is_unfinished(job) and lacks_a_pod(job, newest_per_index(pods_of(job, snapshot)))
