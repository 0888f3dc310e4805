# SPDX-License-Identifier: Apache-2.0
"""The base model that an endpoint without models serves: its digest, and the Job that stores it."""

from dataclasses import dataclass, replace
from typing import Final

from finetune_operator.api.checkpoint import BaseModelRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment, ServedBaseModel
from finetune_operator.api.references import StoreReference
from finetune_operator.engine.resources import DEPLOYMENT, JOB
from finetune_operator.manifests.engines.engine_inputs import endpoint_owner
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.labels import BASE_MODEL_JOB, stage_job_name
from finetune_operator.manifests.trainer_config import store_config, trainer_of
from finetune_operator.manifests.volumes import parse_source, parse_store, secret_mount, store_folder
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.observe.pod_status import stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inferencedeployment.revision.merging import fetched_items
from finetune_operator.reconcile.inferencedeployment.revision.targets import (
    ModelTarget,
    Targets,
    resolve,
)
from finetune_operator.reconcile.platform.profiles import resolve_profile, resolve_store
from finetune_operator.reconcile.platform.storage import check_claim, check_source, check_store
from finetune_operator.reconcile.stages.attempts import AttemptFailed, follow, result
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT
from finetune_trainer.contract.serving import DownloadConfig, StoredModel
from finetune_trainer.contract.vocabulary import FULL_MODEL, FailureReason

DOWNLOAD: Final[JobStage] = "download"


def places_of(endpoint: InferenceDeployment, profile: ComputeProfile) -> tuple[str, ...]:
    """URIs of the base model and of the store that gets it, for an endpoint without models."""
    given, store = endpoint.spec.base_model, resolve_store(None, profile, endpoint.namespace)
    if endpoint.spec.models or given is None:
        return ()
    return (given.uri,) if isinstance(store, Blocked) else (given.uri, store.uri)


def targets_of(draft: Draft, endpoint: InferenceDeployment) -> Targets:
    """The weights of the endpoint's models, or of its base model if it has none.

    Deletes the Jobs for base models that the endpoint does not name any more.
    """
    if not endpoint.spec.models:
        return _base_model_target(draft, endpoint)
    _jobs(draft, kept="")
    return resolve(endpoint, draft.snapshot.checkpoints)


def _base_model_target(draft: Draft, endpoint: InferenceDeployment) -> Targets:
    """The base model as the only model, under the name of the endpoint, or how the pass ends without it."""
    given, namespace = endpoint.spec.base_model, endpoint.namespace
    if given is None:
        halt = Failed(Reason.INVALID_SPEC, "the endpoint has neither spec.models nor spec.baseModel: set one")
        return Targets(None, (), halt)
    name = endpoint.spec.compute.profile
    profile = resolve_profile(name, "spec.compute.profile", namespace, draft.snapshot)
    if isinstance(profile, Blocked):
        return Targets(None, (), profile)
    store = resolve_store(None, profile, namespace)
    if isinstance(store, Blocked):
        message = f"no store for the base model: set spec.store of ComputeProfile {profile.name}"
        return Targets(None, (), replace(store, message=message))
    download = _Download(draft, endpoint, given, profile, store)
    job = _jobs(draft, kept=download.name)
    digest = _deployed_digest(draft, download.name) or download.advance(job)
    if not isinstance(digest, str):
        return Targets(None, (), digest)
    record = BaseModelRecord(uri=given.uri, revision=given.revision, digest=digest)
    secret = store.credentials_secret_ref
    weights = WeightsReference(
        store_folder(store.uri, "models", digest),
        digest,
        FULL_MODEL,
        base_model=record,
        credentials=secret.name if secret is not None else None,
        stored_by=download.name,
    )
    return Targets(digest, (ModelTarget(endpoint.name, weights),))


def _jobs(draft: Draft, *, kept: str) -> Manifest | None:
    """The endpoint's Job of this name, if it exists. Its Jobs for other base models are deleted."""
    jobs = {name: job for name, job in draft.snapshot.children[JOB].items() if stage_of(job) == DOWNLOAD}
    for name, job in jobs.items():
        if name != kept:
            draft.remove(job, "Background")
    return jobs.get(kept)


def _deployed_digest(draft: Draft, job: str) -> str | None:
    """Digest of the base model of this Job in a Deployment of the endpoint; None if no Deployment has it.

    The Job and its pod may be gone, and the source may have changed since.
    """
    for deployment in draft.snapshot.children[DEPLOYMENT].values():
        if deployment["metadata"].get("annotations", {}).get(BASE_MODEL_JOB) == job:
            for item in fetched_items(deployment):
                return item.artifact.digest
    return None


@dataclass(frozen=True, slots=True)
class _Download:
    draft: Draft
    endpoint: InferenceDeployment
    given: ServedBaseModel
    profile: ComputeProfile
    store: StoreReference

    @property
    def name(self) -> str:
        """Name of the Job. Another source, digest or store has another Job."""
        given = self.given
        return stage_job_name(self.endpoint, DOWNLOAD, given.source, given.digest or "", self.store.uri)

    def advance(self, job: Manifest | None) -> str | Halt:
        """The digest of the stored model, or how the pass ends until it is known."""
        given, draft = self.given, self.draft
        namespace, snapshot = self.endpoint.namespace, draft.snapshot
        unusable = (
            check_source(given.uri, "spec.baseModel.uri")
            or check_claim(
                given.uri,
                "spec.baseModel.uri",
                FailureReason.BASE_MODEL_NOT_FOUND.value,
                namespace,
                snapshot,
            )
            or check_store(self.store.uri, self.profile, namespace, snapshot)
        )
        if unusable is not None:
            return unusable
        doing = f"Job {self.name} puts base model {given.source} into the store"
        if job is None:
            draft.event(EventReason.STAGE_STARTED, doing)
            draft.start_job(self._job())
            return Working(Reason.STORING_BASE_MODEL, doing)
        halt = follow(draft, job, Reason.STORING_BASE_MODEL, doing)
        if isinstance(halt, AttemptFailed):
            message = (
                f"base model {given.source} could not be put into the store: {halt.message}; the operator"
                " retries every 5 minutes"
            )
            return Blocked(Reason.BASE_MODEL_NOT_STORED, message, halt.retry_seconds)
        if halt is not None:
            return halt
        stored = result(draft, job, StoredModel, Reason.STORING_BASE_MODEL, doing)
        return stored if isinstance(stored, Working) else stored.digest

    def _job(self) -> Manifest:
        facts, given = self.draft.snapshot.facts, self.given
        trainer, location = trainer_of(self.profile, facts.trainer_image), parse_source(given.uri)
        store_secret, secret = self.store.credentials_secret_ref, given.credentials_secret_ref
        return build_stage_job(
            self.endpoint,
            self.name,
            DownloadConfig(
                contract=trainer.contract,
                owner=endpoint_owner(self.endpoint),
                run=self.endpoint.uid,
                store=store_config(self.store.uri, store_secret.name if store_secret else None),
                base_model_uri=given.uri,
                base_model_path=location.under(BASE_MODEL_MOUNT) if location is not None else None,
                base_model_revision=given.revision,
                base_model_credentials=secret_mount("base-model", secret.name if secret else None),
                base_model_digest=given.digest,
            ),
            DOWNLOAD,
            Placement(
                image=trainer.image,
                image_pull_policy=facts.image_pull_policy,
                profile=self.profile,
                storage=Storage(store=parse_store(self.store.uri), base_model=location),
                credentials=CredentialsMount(store=store_secret, base_model=secret),
            ),
            nonce_key=facts.nonce_key,
        )
