# SPDX-License-Identifier: Apache-2.0
"""Weights that Jobs prepare before a revision has pods: base model, merged adapter, model cache.

Merge the adapter of a revision into its base model, before pods of the revision exist.

Fill the model cache with the whole model of a revision, before pods of the revision exist.

Each endpoint has a Job of its own for each model. It belongs to the endpoint, so that no endpoint waits for a
Job that is deleted with another one. The pods agree in the cache about which of them copies.

The base model that an endpoint without models serves: its digest, and the Job that stores it.
"""

from dataclasses import dataclass, replace
from typing import Final

from pydantic import ValidationError

from finetune_operator.api.checkpoint import BaseModelRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment, ServedBaseModel
from finetune_operator.api.meta import SecretReference
from finetune_operator.api.references import StoreReference
from finetune_operator.engine.resources import CLAIM, DEPLOYMENT, JOB
from finetune_operator.manifests.endpoint import FETCH_CONTAINER
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.labels import BASE_MODEL_JOB, stage_job_name
from finetune_operator.manifests.model_cache import fill_config, whole_model
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import choose_trainer, owner_of_pod, store_config
from finetune_operator.manifests.volumes import parse_source, parse_store, secret_mount, store_folder
from finetune_operator.manifests.weights import WeightsReference, short_digest
from finetune_operator.observe.pod_status import stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.targets import (
    ModelTarget,
    Targets,
    resolve,
)
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, PlanBuilder, Working
from finetune_operator.reconcile.platform.profiles import resolve_profile, resolve_store
from finetune_operator.reconcile.platform.storage import (
    check_claim,
    check_model_cache,
    check_source,
    check_store,
)
from finetune_operator.reconcile.stages.retries import AttemptFailed, follow, result
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.environment import BASE_MODEL_MOUNT, CONFIG_ENV
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import (
    DownloadConfig,
    FetchConfig,
    FetchItem,
    MergeConfig,
    MergedWeights,
    StoredModel,
)
from finetune_trainer.contract.vocabulary import FULL_MODEL, FailureReason

MERGE: Final[JobStage] = "merge"


def merge_weights(
    draft: PlanBuilder, endpoint: InferenceDeployment, revision: Revision
) -> Revision | Working | Blocked:
    """Advance the Job that merges the adapter of this revision, and delete those for other adapters.

    Returns the revision with the digests of its merged weights, or how the pass ends until they are made. A
    revision without a merged adapter is returned as it is.
    """
    jobs = {name: job for name, job in draft.snapshot.children[JOB].items() if stage_of(job) == MERGE}
    weights = revision.merged
    name = stage_job_name(endpoint, MERGE, weights.digest, revision.base_digest) if weights else ""
    for other, job in jobs.items():
        if other != name:
            draft.remove(job, "Background")
    if weights is None:
        return revision
    doing = f"Job {name} merges {weights.label} into its base model"
    if name not in jobs:
        draft.event(EventReason.STAGE_STARTED, doing)
        draft.start_job(_build(draft, endpoint, revision, weights, name))
        return Working(Reason.MERGING, doing)
    halt = follow(draft, jobs[name], Reason.MERGING, doing)
    if isinstance(halt, AttemptFailed):
        message = f"{weights.label} could not be merged: {halt.message}; the operator retries every 5 minutes"
        return Blocked(Reason.MERGE_FAILED, message, halt.retry_seconds)
    if halt is not None:
        return halt
    merged = result(draft, jobs[name], MergedWeights, Reason.MERGING, doing)
    if isinstance(merged, Working):
        return merged
    return revision.with_merged(merged.weights, merged.probe)


def with_served_merge(revision: Revision, deployment: Manifest) -> Revision:
    """The revision with the digests of the merged weights that the pods of its Deployment fetch.

    Returns the revision as it is if the config of the pods cannot be read.
    """
    found = ((item.merged, item.probe) for item in fetched_items(deployment))
    return next(
        (revision.with_merged(weights, probe) for weights, probe in found if weights and probe), revision
    )


def fetched_items(deployment: Manifest) -> tuple[FetchItem, ...]:
    """The folders that the pods of a Deployment fetch; none if their config cannot be read."""
    pod = deployment["spec"]["template"]["spec"]
    variables = {
        variable["name"]: variable.get("value", "")
        for container in pod.get("initContainers", ())
        if container["name"] == FETCH_CONTAINER
        for variable in container.get("env", ())
    }
    try:
        return FetchConfig.model_validate_json(variables.get(CONFIG_ENV, "")).items
    except ValidationError:
        return ()


def _build(
    draft: PlanBuilder,
    endpoint: InferenceDeployment,
    revision: Revision,
    weights: WeightsReference,
    name: str,
) -> Manifest:
    facts, secret = draft.snapshot.facts, revision.store_credentials
    trainer = choose_trainer(revision.profile, facts.trainer_image)
    config = MergeConfig(
        contract=trainer.contract,
        owner=owner_of_pod(endpoint),
        store=store_config(revision.store, secret),
        checkpoint=ArtifactRef(kind="checkpoints", digest=weights.digest),
        base_model=revision.base_digest,
        probe=weights.probe,
    )
    return build_stage_job(
        endpoint,
        name,
        config,
        MERGE,
        Placement(
            image=trainer.image,
            image_pull_policy=facts.image_pull_policy,
            profile=revision.profile,
            storage=Storage(store=parse_store(revision.store)),
            credentials=CredentialsMount(store=SecretReference(name=secret) if secret else None),
        ),
        nonce_key=facts.nonce_key,
    )


FILL: Final[JobStage] = "fill"


def fill_cache(
    draft: PlanBuilder, endpoint: InferenceDeployment, revision: Revision
) -> Working | Blocked | None:
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
    draft: PlanBuilder
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
        trainer, secret = choose_trainer(revision.profile, facts.trainer_image), revision.store_credentials
        return build_stage_job(
            self.endpoint,
            self.name,
            fill_config(
                owner_of_pod(self.endpoint),
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
    _jobs(draft, kept="")
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


def _jobs(draft: PlanBuilder, *, kept: str) -> Manifest | None:
    """The endpoint's Job of this name, if it exists. Its Jobs for other base models are deleted."""
    jobs = {name: job for name, job in draft.snapshot.children[JOB].items() if stage_of(job) == DOWNLOAD}
    for name, job in jobs.items():
        if name != kept:
            draft.remove(job, "Background")
    return jobs.get(kept)


def _deployed_digest(draft: PlanBuilder, job: str) -> str | None:
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
    draft: PlanBuilder
    endpoint: InferenceDeployment
    given: ServedBaseModel
    profile: ComputeProfile
    store: StoreReference

    @property
    def name(self) -> str:
        """Name of the Job. Another source, digest or store has another Job."""
        given = self.given
        return stage_job_name(self.endpoint, DOWNLOAD, given.source, given.digest or "", self.store.uri)

    def advance(self, job: Manifest | None) -> str | PassOutcome:
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
        trainer, location = choose_trainer(self.profile, facts.trainer_image), parse_source(given.uri)
        store_secret, secret = self.store.credentials_secret_ref, given.credentials_secret_ref
        return build_stage_job(
            self.endpoint,
            self.name,
            DownloadConfig(
                contract=trainer.contract,
                owner=owner_of_pod(self.endpoint),
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
