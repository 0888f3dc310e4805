# SPDX-License-Identifier: Apache-2.0
"""Remove a folder of a record or run from a store with a small Job, with retries for one day."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from finetune_operator.api.meta import Resource, SecretReference
from finetune_operator.engine.resources import CLAIM, JOB
from finetune_operator.manifests.configs import cleanup_config
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.trainer_config import trainer_of
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.platform import profiles, storage
from finetune_operator.reconcile.stages.attempts import AttemptFailed, follow
from finetune_operator.reconcile.steps import RETRY_SECONDS, Blocked, Working
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.references import ArtifactRef

REMOVAL_TIMEOUT: Final = timedelta(hours=24)
"""Time after which an object is deleted although its content is still in use or its store does not answer."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A folder to remove before its owner is deleted."""

    owner: Resource
    store: str
    secret: str | None
    folder: str
    """Uri of the folder, for messages."""
    artifact: ArtifactRef | None
    """The content to remove; None for the folder of a run."""
    advice: str
    """Advice on how to delete the owner and keep the folder, for messages."""
    run: str | None = None
    """Name of the folder of a run; None: the owner's uid."""


def remove(draft: Draft, removal: Removal) -> Working | Blocked | None:
    """Remove the folder with a Job; None once that is done."""
    snapshot, name = (
        draft.snapshot,
        stage_job_name(removal.owner, "cleanup", removal.store, *filter(None, [removal.run])),
    )
    job = snapshot.children[JOB].get(name)
    if job is None:
        return _start(draft, removal, name)
    halt = follow(draft, job, Reason.CLEANING_UP, f"{removal.folder} is being removed")
    if isinstance(halt, AttemptFailed):
        message = f"{removal.owner.name}: {halt.message}"
        return _trouble(removal, Reason.CLEANUP_FAILED, message, halt.retry_seconds)
    return halt


def _start(draft: Draft, removal: Removal, name: str) -> Working | Blocked:
    snapshot, owner, claim = draft.snapshot, removal.owner, storage.claim_name(removal.store)
    if claim is not None and snapshot.is_missing(CLAIM, claim):
        return _trouble(
            removal,
            Reason.STORE_NOT_FOUND,
            f"{removal.folder} cannot be removed: PersistentVolumeClaim {claim} does not exist in namespace"
            f" {owner.namespace}",
            RETRY_SECONDS,
        )
    profile = profiles.resolve_profile(None, "spec.compute.profile", owner.namespace, snapshot)
    known = None if isinstance(profile, Blocked) or profiles.check_trainer(profile) else profile
    trainer = trainer_of(known, snapshot.facts.trainer_image)
    secret = SecretReference(name=removal.secret) if removal.secret else None
    draft.start_job(
        build_stage_job(
            owner,
            name,
            cleanup_config(
                owner, removal.store, removal.secret, removal.artifact or removal.run, trainer.contract
            ),
            "cleanup",
            Placement(
                image=trainer.image,
                image_pull_policy=snapshot.facts.image_pull_policy,
                profile=known,
                storage=Storage(store=parse_store(removal.store)),
                credentials=CredentialsMount(store=secret),
            ),
            nonce_key=snapshot.facts.nonce_key,
        )
    )
    return Working(Reason.CLEANING_UP, f"{removal.folder} is being removed")


def _trouble(removal: Removal, reason: Reason, message: str, recheck_seconds: float) -> Blocked:
    advised = f"{message}; the operator retries every 5 minutes for a day; {removal.advice}"
    return Blocked(reason, advised, recheck_seconds)
