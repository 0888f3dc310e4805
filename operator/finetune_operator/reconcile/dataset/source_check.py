# SPDX-License-Identifier: Apache-2.0
"""One check of a Dataset's sources: its prepare Job, the status after it, and the Jobs that it leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Self

from finetune_operator.api.compute import NO_CHOICE
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import CheckedSource, Dataset, RefreshStatus, RowSource
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.labels import STAGE
from finetune_operator.api.references import StoreReference
from finetune_operator.api.stage_status import RetryStatus
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.configs import prepare_config
from finetune_operator.manifests.labels import REFRESH_REQUESTED, STORE, STORE_CREDENTIALS
from finetune_operator.manifests.trainer_config import StageInputs, choose_trainer
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PlanBuilder
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.retention import versions_of
from finetune_operator.reconcile.records.source_check_schedule import check_request, next_check
from finetune_operator.reconcile.stages.jobs import is_unfinished
from finetune_operator.reconcile.stages.runner import run_stage
from finetune_operator.reconcile.stages.stage_request import (
    JobNames,
    Outcome,
    StageOwner,
    StageRequest,
    StageSetting,
)
from finetune_operator.stage_table import JobStage
from finetune_operator.status import conditions
from finetune_operator.status.conditions import is_prepared
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_trainer.contract.configs import PrepareConfig
from finetune_trainer.contract.references import strip_query
from finetune_trainer.contract.results import SourceResult, SourceRows
from finetune_trainer.contract.vocabulary import RULE_VERSION, Stage

PREPARE: Final[Stage] = "prepare"


def check_number(dataset: Dataset) -> int:
    """Number of the present or next check: the number of finished checks with this spec."""
    if dataset.status.observed_generation != dataset.metadata.generation:
        return 0
    refresh = dataset.status.refresh
    return 0 if refresh is None else refresh.checks


def job_names(dataset: Dataset, number: int) -> JobNames:
    """Names of the Jobs of a check."""
    return JobNames.of(dataset, PREPARE, str(dataset.metadata.generation), suffix=_suffix(number))


def check_source(dataset: Dataset, draft: PlanBuilder) -> Outcome:
    """Advance the present check, or start the next one."""
    request = StageRequest(
        stage=PREPARE,
        run=_run(dataset),
        names=job_names(dataset, check_number(dataset)),
        retry=retry_of(dataset),
    )
    return run_stage(draft, request, _SourceCheck(dataset, draft.snapshot))


def retry_of(dataset: Dataset) -> RetryStatus | None:
    """Failures in a row of checks with this spec."""
    is_current = dataset.status.observed_generation == dataset.metadata.generation
    return dataset.status.retry if is_current else None


def sources_of(dataset: Dataset) -> list[tuple[str, RowSource]]:
    """The sources with the fields of the spec that name them."""
    return [(f"sources[{number}]", source) for number, source in enumerate(dataset.spec.sources)]


def with_known_sources(refresh: RefreshStatus, dataset: Dataset) -> RefreshStatus:
    """The status with the versions of the sources that an earlier check has read."""
    known = dataset.status.refresh.sources if dataset.status.refresh is not None else None
    return refresh.model_copy(update={"sources": known})


def finish_check(dataset: Dataset, snapshot: Snapshot, found: Sequence[SourceResult] | None) -> RefreshStatus:
    """The status after the present check, which answers the request that its Job was created for.

    Args:
        found: the sources as the check has read them; None if their rows were not read or were rejected.
    """
    number, before = check_number(dataset), dataset.status.refresh
    now = snapshot.now.replace(microsecond=0)
    annotations = _annotations(dataset, snapshot)
    return RefreshStatus(
        checks=number + 1,
        checked_at=now,
        next_check_at=next_check(dataset, number + 1, now),
        sources=None
        if not found
        else tuple(
            CheckedSource(uri=strip_query(source.uri), version=result.version)
            for source, result in zip(dataset.spec.sources, found, strict=False)
        ),
        requested=annotations.get(REFRESH_REQUESTED) or (before.requested if before is not None else None),
    )


def prepared_in(dataset: Dataset, snapshot: Snapshot) -> tuple[str | None, str | None]:
    """The store and Secret that the Job used. The profile may name others since."""
    annotations = _annotations(dataset, snapshot)
    return annotations.get(STORE), annotations.get(STORE_CREDENTIALS)


def rule_version(dataset: Dataset, snapshot: Snapshot) -> int:
    """Version of the rules for its rows: that of its first version, so an upgrade moves no row."""
    versions = versions_of(dataset, snapshot)
    if versions:
        first = min(
            versions, key=lambda version: (version.metadata.creation_timestamp or snapshot.now, version.name)
        )
        return first.spec.rule_version
    return dataset.status.rule_version or RULE_VERSION


def profile_of(
    dataset: Dataset, snapshot: Snapshot, find: profiles.FindProfile = profiles.resolve_profile
) -> ComputeProfile | Blocked | None:
    """The default profile, or why it cannot be used. A Dataset with its own store does not need one."""
    profile = find(None, "spec.store", dataset.namespace, snapshot)
    if not isinstance(profile, Blocked):
        return profiles.check_trainer(profile) or profile
    needed = {Reason.PROFILE_NOT_ALLOWED, Reason.DEFAULT_PROFILE_CONFLICT}
    if profile.reason == Reason.PROFILE_NOT_FOUND or (dataset.spec.store and profile.reason in needed):
        return None
    if profile.reason != Reason.PROFILE_NOT_ALLOWED:
        return profile
    message = f"{profile.message}; or set spec.store, which needs no profile"
    return replace(profile, message=message)


def _suffix(number: int) -> str:
    return f"-{number}" if number else ""


def _run(dataset: Dataset) -> str:
    return f"{dataset.uid}-{dataset.metadata.generation}{_suffix(check_number(dataset))}"


def _annotations(dataset: Dataset, snapshot: Snapshot) -> dict[str, str]:
    job = snapshot.children[JOB].get(job_names(dataset, check_number(dataset)).stage)
    annotations: dict[str, str] = {} if job is None else job["metadata"].get("annotations", {})
    return annotations


@dataclass(frozen=True, slots=True)
class _SourceCheck(StageOwner):
    """The present check of a Dataset."""

    dataset: Dataset
    snapshot: Snapshot

    def setting(self, stage: JobStage) -> StageSetting | Blocked:
        dataset, snapshot = self.dataset, self.snapshot
        profile = profile_of(dataset, snapshot)
        if isinstance(profile, Blocked):
            return profile
        store = profiles.resolve_store(dataset.spec.store, profile, dataset.namespace)
        if isinstance(store, Blocked):
            return store
        missing = self._missing(store, profile)
        if missing is not None:
            return missing
        secret = store.credentials_secret_ref
        trainer = choose_trainer(profile, snapshot.facts.trainer_image)
        requested = check_request(dataset) if stage == PREPARE else None
        return StageSetting(
            StageInputs(
                owner=dataset,
                run=_run(dataset),
                store_uri=store.uri,
                store_credentials=secret.name if secret else None,
                report=snapshot.facts.report,
                contract_version=trainer.contract,
                max_unpacked_bytes=profile.spec.limits.unpacked_bytes if profile is not None else None,
            ),
            replace(
                snapshot.facts.job_inputs(trainer.image, profile),
                annotations={} if requested is None else {REFRESH_REQUESTED: requested},
            ),
        )

    def _missing(self, store: StoreReference, profile: ComputeProfile | None) -> Blocked | None:
        namespace, snapshot = self.dataset.namespace, self.snapshot
        missing = storage.check_store(store.uri, profile, namespace, snapshot)
        for field, source in sources_of(self.dataset):
            missing = missing or storage.check_claim(
                source.uri, f"spec.{field}.uri", Reason.SOURCE_NOT_FOUND, namespace, snapshot
            )
        return missing or queues.check_queues(
            queues.queues_of(profile, (PREPARE,), NO_CHOICE), namespace, snapshot
        )

    def config(self, inputs: StageInputs) -> PrepareConfig:
        return _config(self.dataset, self.snapshot, inputs)

    def keep(self) -> None:
        """Record nothing: each check takes the present image and store."""

    def trial(self) -> Self | None:
        return None if retry_of(self.dataset) is not None else self

    def adopt(self, trial: Self) -> None:
        """Record nothing, as in `keep`."""


def _config(dataset: Dataset, snapshot: Snapshot, inputs: StageInputs) -> PrepareConfig:
    latest = _latest(dataset, snapshot, inputs.store_uri)
    rule = rule_version(dataset, snapshot)
    sources = dict(sources_of(dataset))
    if latest is None:
        return prepare_config(inputs, sources, dataset.spec, rule_version=rule)
    # Another spec makes other rows from the same sources, which are then read again even if they have not
    # changed.
    refresh = dataset.status.refresh if is_prepared(dataset) else None
    known = refresh.sources if refresh is not None else None
    return prepare_config(
        inputs,
        sources,
        dataset.spec,
        rule_version=rule,
        previous=latest.spec.digest,
        previous_sources=[
            SourceRows(uri=each.uri, train=each.train, validation=each.validation, test=each.test)
            for each in latest.spec.sources
        ],
        known_versions=[each.version for each in known or ()],
    )


def _latest(dataset: Dataset, snapshot: Snapshot, store: str) -> DatasetVersion | None:
    """The latest version, unless its rows are not in this store or it is being deleted."""
    version = snapshot.datasetversions.get(dataset.status.latest_version or "")
    if version is None or version.metadata.deletion_timestamp is not None:
        return None
    return version if store in version.status.locations else None


CHILDREN_TTL: Final = timedelta(hours=1)
"""How long the last finished Job and the log of its pod are kept."""


def delete_old_jobs(dataset: Dataset, draft: PlanBuilder) -> float | None:
    """Delete the Jobs of earlier generations and checks, and those of the last check an hour after its end.

    Returns: seconds until another Job is due for deletion.
    """
    now, number = draft.snapshot.now, check_number(dataset)
    current = _used_names(dataset, number)
    last = _used_names(dataset, number - 1) if number else ()
    end = _ended_at(dataset)
    next_due: float | None = None
    for name, job in draft.snapshot.children[JOB].items():
        if STAGE not in job["metadata"].get("labels", {}) or name in current:
            continue
        if name not in last:
            draft.remove(job)
        elif end is not None and not is_unfinished(job):
            remaining = end + CHILDREN_TTL - now
            if remaining <= timedelta():
                draft.remove(job, "Background")
            else:
                next_due = remaining.total_seconds()
    return next_due


def _used_names(dataset: Dataset, number: int) -> tuple[str, str]:
    names = job_names(dataset, number)
    return names.stage, names.collect


def _ended_at(dataset: Dataset) -> datetime | None:
    refresh, found = dataset.status.refresh, dataset.status.conditions
    if refresh is not None and refresh.checked_at is not None:
        return refresh.checked_at
    end = conditions.find_condition(found, ConditionType.READY) or conditions.find_condition(
        found, ConditionType.STALLED
    )
    return None if end is None else end.last_transition_time
