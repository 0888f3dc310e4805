"""Dataset: each generation is prepared once, and its rows become a DatasetVersion."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, Literal

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset, DatasetVersionSummary, StoreReference
from finetune_operator.build.configs import StageInputs, collect_config, prepare_config
from finetune_operator.build.jobs import Placement, build_stage_job
from finetune_operator.build.labels import (
    STAGE,
    STORE,
    STORE_CREDENTIALS,
    dataset_version_name,
    stage_job_name,
)
from finetune_operator.build.locations import parse_source, parse_store
from finetune_operator.build.pods import Credentials, Storage
from finetune_operator.build.records import build_dataset_version
from finetune_operator.plan import Create, Manifest, Plan
from finetune_operator.reconcile import profiles, storage
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.ownership import delete_with, holding, versions_of
from finetune_operator.reconcile.stages import (
    Broken,
    Retry,
    StageRequest,
    advance,
    is_stage_running,
    is_unfinished,
)
from finetune_operator.reconcile.steps import Blocked, Done, Failed, Working
from finetune_operator.reconcile.world import World
from finetune_operator.status import conditions
from finetune_operator.status.problems import shown_problems
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.reserved import not_implemented
from finetune_trainer.contract import PrepareResult, StageResult

VERSIONS_AT_MOST: Final = 10
CHILDREN_TTL: Final = timedelta(hours=1)
"""How long a finished Job and its pod's log stay."""


def claims(dataset: Dataset, world: World) -> frozenset[str]:
    """Claims to look at: none while the preparation runs or once it is through."""
    if is_settled(dataset) or is_stage_running(world):
        return frozenset()
    profile = _profile(dataset, world)
    store = None if isinstance(profile, Blocked) else profiles.resolve_store(dataset.spec.store, profile)
    store_uri = store.uri if isinstance(store, StoreReference) else None
    return storage.claim_names(store_uri, dataset.spec.source.uri)


def is_settled(dataset: Dataset) -> bool:
    """Whether this generation has been prepared, or cannot be; a name conflict is no end, as for runs."""
    status = dataset.status
    if status.observed_generation != dataset.metadata.generation:
        return False
    stalled = conditions.find(status.conditions, ConditionType.STALLED)
    failed = stalled is not None and stalled.status == "True" and stalled.reason != Reason.NAME_CONFLICT
    return failed or conditions.is_true(status.conditions, ConditionType.READY)


def reconcile(dataset: Dataset, world: World) -> Plan:
    """What should be done now for one Dataset."""
    if dataset.metadata.deletion_timestamp is not None:
        return delete_with(dataset, versions_of(dataset, world), world)
    return replace(_prepare(dataset, world), metadata=holding(dataset))


def _prepare(dataset: Dataset, world: World) -> Plan:
    draft = Draft(world)
    requeue_after = _clear_away(dataset, draft)
    if is_settled(dataset):
        return draft.plan(None, requeue_after)
    messages = not_implemented(dataset.spec)
    if messages:
        return _plan(dataset, draft, Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages)))
    refused = storage.check_source(dataset.spec.source.uri, "spec.source.uri") or storage.check_form(
        dataset.spec.store
    )
    if refused is not None:
        return _plan(dataset, draft, refused)
    outcome = advance(draft, _request(dataset, world))
    if isinstance(outcome, StageResult):
        return _record(dataset, draft, outcome.prepare)
    if isinstance(outcome, Retry):
        return _plan(dataset, draft, outcome.blocked(world.now))
    if isinstance(outcome, Broken):
        draft.event(EventReason.STAGE_FAILED, f"prepare failed: {outcome.message}", "Warning")
        found = outcome.result.prepare if outcome.result is not None else None
        problems = {} if found is None else _problems(found)
        return _plan(dataset, draft, Failed(outcome.reason, outcome.message), **problems)
    return _plan(dataset, draft, outcome)


def _run(dataset: Dataset) -> str:
    return f"{dataset.uid}-{dataset.metadata.generation}"


def _job_names(dataset: Dataset) -> tuple[str, str]:
    generation = str(dataset.metadata.generation)
    return (
        stage_job_name(dataset, "prepare", generation),
        stage_job_name(dataset, "collect", "prepare", generation),
    )


def _request(dataset: Dataset, world: World) -> StageRequest:
    name, collect_name = _job_names(dataset)
    return StageRequest(
        stage="prepare",
        name=name,
        run=_run(dataset),
        build=lambda: _build(dataset, world, "prepare"),
        collect_name=collect_name,
        build_collect=lambda: _build(dataset, world, "collect"),
    )


def _profile(dataset: Dataset, world: World) -> ComputeProfile | Blocked | None:
    """The default profile; a Dataset with a store of its own can do without one."""
    profile = profiles.resolve_profile(None, "spec.store", dataset.namespace, world)
    unneeded = {Reason.PROFILE_NOT_FOUND, Reason.PROFILE_NOT_ALLOWED}
    if dataset.spec.store is not None:
        unneeded.add(Reason.DEFAULT_PROFILE_CONFLICT)
    if isinstance(profile, Blocked) and profile.reason in unneeded:
        return None
    return profile


def _build(dataset: Dataset, world: World, stage: Literal["prepare", "collect"]) -> Manifest | Blocked:
    profile = _profile(dataset, world)
    if isinstance(profile, Blocked):
        return profile
    store = profiles.resolve_store(dataset.spec.store, profile)
    if isinstance(store, Blocked):
        return store
    source = dataset.spec.source
    missing = storage.check_store(store.uri, profile, dataset.namespace, world) or storage.check_claim(
        source.uri, "spec.source.uri", Reason.SOURCE_NOT_FOUND, dataset.namespace, world
    )
    if missing is not None:
        return missing
    secret = store.credentials_secret_ref
    inputs = StageInputs(
        owner=dataset,
        run=_run(dataset),
        store_uri=store.uri,
        store_credentials=secret.name if secret else None,
        report=world.facts.report,
    )
    prepares = stage == "prepare"
    name, collect_name = _job_names(dataset)
    image = profile.spec.images.trainer if profile is not None else None
    return build_stage_job(
        dataset,
        name if prepares else collect_name,
        prepare_config(inputs, dataset.spec) if prepares else collect_config(inputs, "prepare"),
        stage,
        Placement(
            image=image or world.facts.trainer_image,
            image_pull_policy=world.facts.image_pull_policy,
            profile=profile,
            storage=Storage(
                store=parse_store(store.uri), source=parse_source(source.uri) if prepares else None
            ),
            credentials=Credentials(
                store=store.credentials_secret_ref, source=source.credentials_secret_ref if prepares else None
            ),
        ),
    )


def _record(dataset: Dataset, draft: Draft, prepared: PrepareResult | None) -> Plan:
    if (
        prepared is None
        or prepared.dataset is None
        or prepared.source is None
        or prepared.preparation is None
    ):
        message = (
            "prepare reports success but not what it made: check that the trainer image is of this release"
        )
        return _plan(dataset, draft, Failed(Reason.RESULT_LOST, message))
    name = dataset_version_name(dataset.name, prepared.dataset)
    store, secret = _prepared_in(dataset, draft.world)
    record = build_dataset_version(
        dataset,
        name,
        prepared,
        source=dataset.spec.source.uri,
        store=store,
        store_credentials=secret,
        deletion_policy=dataset.spec.deletion_policy,
    )
    draft.create.append(Create(record, same="Digest"))
    rows = sum(split.rows for split in prepared.splits)
    known = [version for version in dataset.status.versions if version.name != name]
    if len(known) == len(dataset.status.versions):
        draft.event(EventReason.DATASET_VERSION_CREATED, f"DatasetVersion {name} with {rows} rows")
    created_at = next(
        (version.created_at for version in dataset.status.versions if version.name == name),
        draft.world.now.replace(microsecond=0),
    )
    summary = DatasetVersionSummary(name=name, rows=rows, digest=prepared.dataset, created_at=created_at)
    splits = ", ".join(f"{split.rows} {split.name}" for split in prepared.splits)
    return _plan(
        dataset,
        draft,
        Done(Reason.SUCCEEDED, f"DatasetVersion {name} has {rows} rows ({splits})"),
        latest_version=name,
        store=store,
        versions=(summary, *known)[:VERSIONS_AT_MOST],
        rows=rows,
        format=prepared.format,
        **_problems(prepared),
    )


def _prepared_in(dataset: Dataset, world: World) -> tuple[str | None, str | None]:
    """The store and Secret that the Job worked with, which a profile edited since may no longer name."""
    annotations = world.jobs[_job_names(dataset)[0]]["metadata"].get("annotations", {})
    return annotations.get(STORE), annotations.get(STORE_CREDENTIALS)


def _problems(prepared: PrepareResult) -> dict[str, Any]:
    return {"problem_count": prepared.problem_count, "problems": shown_problems(prepared)}


def _plan(
    dataset: Dataset,
    draft: Draft,
    halt: Working | Blocked | Failed | Done,
    **fields: Any,
) -> Plan:
    before = conditions.find(dataset.status.conditions, ConditionType.RECONCILING)
    if isinstance(halt, Blocked) and (before is None or before.reason != halt.reason):
        draft.event(EventReason.BLOCKED, halt.message, "Warning")
    state: Literal[ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED]
    if isinstance(halt, Done):
        state, phase = ConditionType.READY, "Ready"
    elif isinstance(halt, Failed):
        state, phase = ConditionType.STALLED, conditions.FAILED
    else:
        state = ConditionType.RECONCILING
        phase = conditions.BLOCKED if isinstance(halt, Blocked) else halt.reason
    generation = dataset.metadata.generation
    status = dataset.status.model_copy(
        update={
            "observed_generation": generation,
            "phase": phase,
            "conditions": conditions.enter(
                dataset.status.conditions,
                state,
                halt.reason,
                halt.message,
                generation=generation,
                now=draft.world.now,
            ),
            **fields,
        }
    )
    requeue_after = None if isinstance(halt, Done | Failed) else halt.requeue_after
    return draft.plan(conditions.status_manifest(status), requeue_after)


def _clear_away(dataset: Dataset, draft: Draft) -> float | None:
    """Remove what earlier generations left, and this one's finished Jobs an hour after they were recorded.

    Returns: seconds until something more becomes due.
    """
    now, current = draft.world.now, _job_names(dataset)
    settled = is_settled(dataset)
    end = conditions.find(dataset.status.conditions, ConditionType.READY) or conditions.find(
        dataset.status.conditions, ConditionType.STALLED
    )
    due = None if end is None else end.last_transition_time + CHILDREN_TTL
    next_due: float | None = None
    for name, job in draft.world.jobs.items():
        if STAGE not in job["metadata"].get("labels", {}):
            continue
        if name not in current:
            draft.remove(job)
        elif settled and due is not None and not is_unfinished(job):
            if now >= due:
                draft.remove(job, "Background")
            else:
                next_due = (due - now).total_seconds()
    return next_due
