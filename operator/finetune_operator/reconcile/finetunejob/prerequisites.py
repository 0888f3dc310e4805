"""What a run needs around it before one of its stages may start: profiles, a store, claims."""

from dataclasses import dataclass

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.finetunejobstatus import Resolved
from finetune_operator.api.meta import SecretReference
from finetune_operator.api.storereference import StoreReference
from finetune_operator.manifests.podtemplate import CPU
from finetune_operator.manifests.trainerimage import FIRST_CONTRACT, TrainerImage, trainer_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.inputs.secondaries import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.platform import profiles, storage
from finetune_operator.reconcile.records.finalizer import has_finalizer
from finetune_operator.reconcile.stages.jobresults import contract_of_jobs
from finetune_operator.reconcile.stages.jobstate import is_stage_running
from finetune_operator.reconcile.steps import Blocked, Failed
from finetune_operator.status.finished import is_finished
from finetune_operator.status.reasons import Reason
from finetune_operator.status.reserved import not_implemented
from finetune_trainer.contract.methods import METHODS
from finetune_trainer.contract.outcomes import FailureReason


@dataclass(frozen=True, slots=True)
class Prerequisites:
    """Everything is there; the trainer and the store stay those of the first stage."""

    profile: ComputeProfile
    evaluate_profile: ComputeProfile
    store: StoreReference
    trainer: TrainerImage


def needs(job: FineTuneJob, snapshot: Snapshot) -> Needs:
    """Claims: none while a stage runs, because nothing is about to be created.

    Of a run that is being deleted: the one with its folder.
    """
    if job.metadata.deletion_timestamp is not None:
        return storage.claims_of(job.status.resolved.store) if has_finalizer(job) else NOTHING
    if job.spec.suspend or is_finished(job) or is_stage_running(snapshot):
        return NOTHING
    profile = _profile(job, snapshot)
    store = None if isinstance(profile, Blocked) else _store(job, profile)
    store_uri = store.uri if isinstance(store, StoreReference) else job.status.resolved.store
    return storage.claims_of(store_uri, *(uri for _, uri, _ in _inputs(job)))


def _inputs(job: FineTuneJob) -> tuple[tuple[str, str, str], ...]:
    """What the run has still to read beside its store: field, uri, and the reason when it is not there."""
    inputs = []
    inline, base_model = job.spec.dataset.inline, job.spec.base_model.uri
    if inline is not None and job.status.resolved.dataset_version is None:
        inputs.append(("spec.dataset.inline.source.uri", inline.source.uri, Reason.SOURCE_NOT_FOUND.value))
    if base_model is not None and job.status.resolved.base_model_digest is None:
        inputs.append(("spec.baseModel.uri", base_model, FailureReason.BASE_MODEL_NOT_FOUND.value))
    return tuple(inputs)


def begins(run: Run) -> Failed | Blocked | None:
    """Before the first stage, tell at once all that is wrong, not only when the stage that minds is due."""
    if run.status.resolved.store is not None:
        return None
    refused = _refused(run)
    if refused is not None:
        return refused
    found = prerequisites(run)
    if isinstance(found, Blocked):
        return found
    return _unusable(found.profile, found.evaluate_profile) or _too_many_processes(run.job, found.profile)


def _unusable(*profiles: ComputeProfile) -> Blocked | None:
    """A profile that asks for what this release does not do; a run that has begun is not stopped for it."""
    for profile in profiles:
        messages = not_implemented(profile.spec)
        if messages:
            return Blocked(
                Reason.PROFILE_INVALID,
                f"ComputeProfile {profile.name} cannot be used. {'; '.join(messages)}",
                requeue_after=None,
            )
    return None


def _too_many_processes(job: FineTuneJob, profile: ComputeProfile) -> Failed | None:
    """CPU cores are threads of one process; whether devices are, the API server cannot know."""
    method, devices = job.spec.method.type, job.spec.compute.devices
    if METHODS[method].distributed or devices == 1 or profile.spec.devices.resource == CPU:
        return None
    return Failed(
        Reason.INVALID_SPEC,
        f"spec.compute.devices is {devices}, but {method} trains in one process in this release: make a new"
        " FineTuneJob without it",
    )


def _refused(run: Run) -> Failed | None:
    """What this release does not act on, and uris that point nowhere."""
    spec = run.job.spec
    messages = not_implemented(spec)
    if messages:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    for field, uri, _ in _inputs(run.job):
        wrong = storage.check_source(uri, field)
        if wrong is not None:
            return wrong
    return storage.check_form(spec.store)


def prerequisites(run: Run) -> Prerequisites | Blocked:
    """What a stage that is about to start finds, or what is missing."""
    job, snapshot = run.job, run.snapshot
    profile = _profile(job, snapshot)
    if isinstance(profile, Blocked):
        return profile
    too_many = profiles.check_devices(profile, job.spec.compute.devices, "spec.compute.devices")
    if too_many is not None:
        return too_many
    evaluate_profile = _evaluate_profile(job, profile, snapshot)
    if isinstance(evaluate_profile, Blocked):
        return evaluate_profile
    store = _store(job, profile)
    if isinstance(store, Blocked):
        return store
    missing = _missing_claim(job, store, profile, snapshot)
    if missing is not None:
        return missing
    trainer = _kept_trainer(job.status.resolved)
    if trainer is None:
        unknown = profiles.check_trainer(profile)
        if unknown is not None:
            return unknown
        trainer = trainer_of(profile, snapshot.facts.trainer_image)
    return Prerequisites(profile, evaluate_profile, store, trainer)


def _kept_trainer(resolved: Resolved) -> TrainerImage | None:
    """The trainer of the first stage; releases that did not record its contract spoke the first one."""
    if resolved.trainer_image is None:
        return None
    return TrainerImage(resolved.trainer_image, resolved.trainer_contract or FIRST_CONTRACT)


def known_contract(run: Run) -> int:
    """Version of the contract that the run's Jobs are made in."""
    resolved = run.status.resolved
    profile = _profile(run.job, run.snapshot)
    own = None if isinstance(profile, Blocked) else profile
    return contract_of_jobs(
        resolved.trainer_contract,
        has_begun=resolved.trainer_image is not None,
        current=trainer_of(own, run.snapshot.facts.trainer_image).contract,
    )


def keep(run: Run, found: Prerequisites) -> None:
    """Record the profile, store and image that the run has begun with; later stages use them too."""
    secret = found.store.credentials_secret_ref
    run.resolve(
        profile=found.profile.name,
        profile_generation=found.profile.metadata.generation,
        store=found.store.uri,
        store_credentials=secret.name if secret else None,
        trainer_image=found.trainer.image,
        trainer_contract=found.trainer.contract,
    )


def _profile(job: FineTuneJob, snapshot: Snapshot) -> ComputeProfile | Blocked:
    name = job.status.resolved.profile or job.spec.compute.profile
    return profiles.resolve_profile(name, "spec.compute.profile", job.namespace, snapshot)


def _evaluate_profile(
    job: FineTuneJob, profile: ComputeProfile, snapshot: Snapshot
) -> ComputeProfile | Blocked:
    if job.spec.evaluation is None or job.spec.evaluation.profile is None:
        return profile
    return profiles.resolve_profile(
        job.spec.evaluation.profile, "spec.evaluation.profile", job.namespace, snapshot
    )


def _store(job: FineTuneJob, profile: ComputeProfile) -> StoreReference | Blocked:
    """The store: once resolved, a profile that changes its store moves no run to another one."""
    store = profiles.resolve_store(job.spec.store, profile)
    kept, secret = job.status.resolved.store, job.status.resolved.store_credentials
    if kept is None or (isinstance(store, StoreReference) and store.uri == kept):
        return store
    return StoreReference(uri=kept, credentials_secret_ref=SecretReference(name=secret) if secret else None)


def _missing_claim(
    job: FineTuneJob, store: StoreReference, profile: ComputeProfile, snapshot: Snapshot
) -> Blocked | None:
    blocked = storage.check_store(store.uri, profile, job.namespace, snapshot)
    for field, uri, reason in _inputs(job):
        blocked = blocked or storage.check_claim(uri, field, reason, job.namespace, snapshot)
    return blocked
