# SPDX-License-Identifier: Apache-2.0
"""Find the pods of a Job, and the result of its stage among their termination messages.

Users who can create pods or Jobs in a namespace can give them any label and owner. The operator accepts a
result only if it names the right run and stage, and repeats the nonce and the config digest of the Job.
"""

from dataclasses import dataclass
from typing import Final

from finetune_operator.engine.resources import POD
from finetune_operator.manifests.labels import CONFIG_DIGEST, NONCE
from finetune_operator.observe import pod_termination
from finetune_operator.observe.pod_status import container_state
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ResultStage

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


def success(pods: list[Manifest], job: Manifest, expected: Expected) -> StageResult | None:
    """The result of the pod that succeeded; earlier pods of the Job may have failed."""
    results = (result_of(pod, job, expected) for pod in pods)
    return next((result for result in results if result and result.outcome == "Succeeded"), None)


def last_word(pods: list[Manifest], job: Manifest, expected: Expected) -> StageResult | None:
    """The result of the pod whose end decides; earlier pods may have failed for another reason."""
    pod = pod_termination.deciding_pod(pods)
    return None if pod is None else result_of(pod, job, expected)
