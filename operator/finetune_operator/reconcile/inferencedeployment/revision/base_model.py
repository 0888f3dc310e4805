# SPDX-License-Identifier: Apache-2.0
"""The base model that an endpoint without models serves: its digest, and the Job that stores it."""

from dataclasses import replace
from typing import Final

from finetune_operator.api.checkpoint import BaseModelRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment, ServedBaseModel
from finetune_operator.api.references import StoreReference
from finetune_operator.engine.resources import DEPLOYMENT
from finetune_operator.manifests.endpoint import fetched_items
from finetune_operator.manifests.labels import BASE_MODEL_JOB, stage_job_name
from finetune_operator.manifests.trainer_config import owner_of_pod, store_config
from finetune_operator.manifests.volumes import parse_source, secret_mount, store_folder
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.reconcile.inferencedeployment.revision.targets import (
    ModelTarget,
    Targets,
    resolve,
)
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, PlanBuilder
from finetune_operator.reconcile.platform.profiles import resolve_profile, resolve_store
from finetune_operator.reconcile.platform.storage import check_claim, check_source, check_store
from finetune_operator.reconcile.stages.repeated_jobs import RepeatedJob, keep_only
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import Reason
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


def targets_of(draft: PlanBuilder, endpoint: InferenceDeployment) -> Targets:
    """The weights of the endpoint's models, or of its base model if it has none.

    Deletes the Jobs for base models that the endpoint does not name any more.
    """
    if not endpoint.spec.models:
        return _base_model_target(draft, endpoint)
    keep_only(draft, DOWNLOAD, None)
    return resolve(endpoint, draft.snapshot.checkpoints)


def _base_model_target(draft: PlanBuilder, endpoint: InferenceDeployment) -> Targets:
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
    job = _job(endpoint, given, profile, store)
    keep_only(draft, DOWNLOAD, job.name)
    digest = _deployed_digest(draft, job.name) or _stored_digest(draft, job, given, profile, store)
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
        stored_by=job.name,
    )
    return Targets(digest, (ModelTarget(endpoint.name, weights),))


def _deployed_digest(draft: PlanBuilder, job: str) -> str | None:
    """Digest of the base model of this Job in a Deployment of the endpoint; None if no Deployment has it.

    The Job and its pod may be gone, and the source may have changed since.
    """
    for deployment in draft.snapshot.children[DEPLOYMENT].values():
        if deployment["metadata"].get("annotations", {}).get(BASE_MODEL_JOB) == job:
            for item in fetched_items(deployment):
                return item.artifact.digest
    return None


def _stored_digest(
    draft: PlanBuilder,
    job: RepeatedJob,
    given: ServedBaseModel,
    profile: ComputeProfile,
    store: StoreReference,
) -> str | PassOutcome:
    """The digest of the stored model, or how the pass ends until it is known."""
    namespace, snapshot = job.owner.namespace, draft.snapshot
    reason = FailureReason.BASE_MODEL_NOT_FOUND.value
    unusable = (
        check_source(given.uri, "spec.baseModel.uri")
        or check_claim(given.uri, "spec.baseModel.uri", reason, namespace, snapshot)
        or check_store(store.uri, profile, namespace, snapshot)
    )
    if unusable is not None:
        return unusable
    stored = job.result(draft, StoredModel)
    return stored.digest if isinstance(stored, StoredModel) else stored


def _job(
    endpoint: InferenceDeployment, given: ServedBaseModel, profile: ComputeProfile, store: StoreReference
) -> RepeatedJob:
    """The Job. Another source, digest or store has another one."""
    name = stage_job_name(endpoint, DOWNLOAD, given.source, given.digest or "", store.uri)
    store_secret, secret = store.credentials_secret_ref, given.credentials_secret_ref

    def config(contract: int) -> DownloadConfig:
        location = parse_source(given.uri)
        return DownloadConfig(
            contract=contract,
            owner=owner_of_pod(endpoint),
            run=endpoint.uid,
            store=store_config(store.uri, store_secret.name if store_secret else None),
            base_model_uri=given.uri,
            base_model_path=location.under(BASE_MODEL_MOUNT) if location is not None else None,
            base_model_revision=given.revision,
            base_model_credentials=secret_mount("base-model", secret.name if secret else None),
            base_model_digest=given.digest,
        )

    return RepeatedJob(
        owner=endpoint,
        name=name,
        stage=DOWNLOAD,
        profile=profile,
        config=config,
        reason=Reason.STORING_BASE_MODEL,
        doing=f"Job {name} puts base model {given.source} into the store",
        failure_reason=Reason.BASE_MODEL_NOT_STORED,
        failure=f"base model {given.source} could not be put into the store",
    )
