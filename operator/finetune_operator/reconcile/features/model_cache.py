# SPDX-License-Identifier: Apache-2.0
"""The model cache: a Job copies the whole model of a revision into it, before the revision has pods.

Each endpoint has a Job of its own for each model. It belongs to the endpoint, so that no endpoint waits for a
Job that is deleted with another one. The pods agree in the cache about which of them copies.
"""

from functools import partial
from typing import Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.resources import CLAIM
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.model_cache import fill_config, whole_model
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import owner_of_pod, store_config
from finetune_operator.manifests.weights import short_digest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PlanBuilder, Working
from finetune_operator.reconcile.platform.storage import check_model_cache
from finetune_operator.reconcile.stages.repeated_jobs import RepeatedJob, keep_only
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import Reason

FILL: Final[JobStage] = "fill"


def fill_cache(
    draft: PlanBuilder, endpoint: InferenceDeployment, revision: Revision
) -> Working | Blocked | None:
    """Advance the Job for the model of this revision, and delete those for other models.

    Returns how the pass ends while pods of the revision must not start; None once they may.
    """
    claim, snapshot = revision.cache_claim, draft.snapshot
    job = _job(endpoint, revision, claim, snapshot) if claim is not None else None
    keep_only(draft, FILL, job.name if job is not None else None)
    if job is None:
        return None
    unusable = check_model_cache(revision.profile, revision.store, endpoint.namespace, snapshot)
    return unusable or job.run(draft)


def _job(endpoint: InferenceDeployment, revision: Revision, claim: str, snapshot: Snapshot) -> RepeatedJob:
    """The Job. Another claim with the same name, which is empty, has another one."""
    found, merged = snapshot.find(CLAIM, claim), revision.merged
    uid = found["metadata"]["uid"] if found is not None else ""
    derived = [merged.merged or ""] if merged is not None else []
    digest = whole_model(revision).digest
    name = stage_job_name(endpoint, FILL, claim, uid, digest, *derived)
    model, into = short_digest(digest), f"into the model cache, PersistentVolumeClaim {claim}"
    store = store_config(revision.store, revision.store_credentials)
    return RepeatedJob(
        owner=endpoint,
        name=name,
        stage=FILL,
        profile=revision.profile,
        config=partial(fill_config, owner_of_pod(endpoint), store, claim, revision),
        reason=Reason.FILLING_MODEL_CACHE,
        doing=f"Job {name} copies model {model} {into}",
        failure_reason=Reason.MODEL_CACHE_NOT_FILLED,
        failure=f"model {model} could not be copied {into}",
    )
