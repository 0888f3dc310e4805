# SPDX-License-Identifier: Apache-2.0
"""Fill the model cache with the whole model of a revision, before pods of the revision exist.

Each endpoint has a Job of its own for each model. It belongs to the endpoint, so that no endpoint waits for a
Job that is deleted with another one. The pods agree in the cache about which of them copies.
"""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import SecretReference
from finetune_operator.engine.resources import CLAIM, JOB
from finetune_operator.manifests.engines.engine_inputs import endpoint_owner
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.model_cache import fill_config, whole_model
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import store_config, trainer_of
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.manifests.weights import short_digest
from finetune_operator.observe.pod_status import stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.platform.storage import check_model_cache
from finetune_operator.reconcile.stages.attempts import AttemptFailed, follow
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason

FILL: Final[JobStage] = "fill"


def fill_cache(draft: Draft, endpoint: InferenceDeployment, revision: Revision) -> Working | Blocked | None:
    """Advance the Job for the model of this revision, and delete those for other models.

    Returns how the pass ends while pods of the revision must not start; None once they may.
    """
    jobs = {name: job for name, job in draft.snapshot.children[JOB].items() if stage_of(job) == FILL}
    halt: Working | Blocked | None = None
    name = ""
    if revision.cache_claim is not None:
        fill = _Fill(draft, endpoint, revision, revision.cache_claim)
        name, halt = fill.name, fill.advance(jobs.get(fill.name))
    for other, job in jobs.items():
        if other != name:
            draft.remove(job, "Background")
    return halt


@dataclass(frozen=True, slots=True)
class _Fill:
    draft: Draft
    endpoint: InferenceDeployment
    revision: Revision
    claim: str

    @property
    def name(self) -> str:
        """Name of the Job. Another claim with the same name, which is empty, has another Job."""
        found = self.draft.snapshot.find(CLAIM, self.claim)
        uid = found["metadata"]["uid"] if found is not None else ""
        merged = self.revision.merged
        derived = [merged.merged or ""] if merged is not None else []
        model = whole_model(self.revision).digest
        return stage_job_name(self.endpoint, FILL, self.claim, uid, model, *derived)

    def advance(self, job: Manifest | None) -> Working | Blocked | None:
        profile, namespace = self.revision.profile, self.endpoint.namespace
        unusable = check_model_cache(profile, self.revision.store, namespace, self.draft.snapshot)
        if unusable is not None:
            return unusable
        model = short_digest(whole_model(self.revision).digest)
        into = f"into the model cache, PersistentVolumeClaim {self.claim}"
        doing = f"Job {self.name} copies model {model} {into}"
        if job is None:
            self.draft.event(EventReason.STAGE_STARTED, doing)
            self.draft.start_job(self._job())
            return Working(Reason.FILLING_MODEL_CACHE, doing)
        halt = follow(self.draft, job, Reason.FILLING_MODEL_CACHE, doing)
        if isinstance(halt, AttemptFailed):
            failed = f"model {model} could not be copied {into}: {halt.message}"
            message = f"{failed}; the operator retries every 5 minutes"
            return Blocked(Reason.MODEL_CACHE_NOT_FILLED, message, halt.retry_seconds)
        return halt

    def _job(self) -> Manifest:
        revision, facts = self.revision, self.draft.snapshot.facts
        trainer, secret = trainer_of(revision.profile, facts.trainer_image), revision.store_credentials
        return build_stage_job(
            self.endpoint,
            self.name,
            fill_config(
                endpoint_owner(self.endpoint),
                store_config(revision.store, secret),
                self.claim,
                revision,
                trainer.contract,
            ),
            FILL,
            Placement(
                image=trainer.image,
                image_pull_policy=facts.image_pull_policy,
                profile=revision.profile,
                storage=Storage(store=parse_store(revision.store), cache=self.claim),
                credentials=CredentialsMount(store=SecretReference(name=secret) if secret else None),
            ),
            nonce_key=facts.nonce_key,
        )
