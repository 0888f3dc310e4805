"""A stage of a run: its Job from the prerequisites, its progress, its times and its end."""

from collections.abc import Callable

from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.configs import StageInputs, collect_config
from finetune_operator.manifests.jobs import Placement, build_stage_job
from finetune_operator.manifests.labels import PROFILE, stage_job_name
from finetune_operator.manifests.locations import parse_source, parse_store
from finetune_operator.manifests.peerservice import (
    build_peer_key,
    build_peer_policy,
    build_peer_service,
    peer_name,
)
from finetune_operator.manifests.podtemplate import CPU, CredentialsMount, Storage
from finetune_operator.observe import stagetimes
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.prerequisites import (
    Prerequisites,
    keep,
    known_contract,
    prerequisites,
)
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.stages.advance import advance
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.request import Peers, Probe, StageFailed, StageRequest
from finetune_operator.reconcile.steps import Blocked, Failed, Halt, Working
from finetune_operator.stagetable import STAGES
from finetune_operator.status import progress
from finetune_operator.status.problems import shown_problems
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.configs.stage import StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


def run_stage(run: Run, stage: Stage, config: Callable[[StageInputs], StageConfig]) -> StageResult | Halt:
    """The stage's result, or how the pass ends."""
    job = run.job
    collect_name = stage_job_name(job, "collect", stage)
    request = StageRequest(
        stage=stage,
        name=stage_job_name(job, stage),
        run=job.uid,
        build=lambda: _build(run, stage, config),
        collect_name=collect_name,
        build_collect=lambda: _build_collect(run, stage, collect_name),
        peers=_peers(run) if _nodes(run, stage) > 1 else None,
        retry=run.status.retry,
        probe=_probe(run, stage) if STAGES[stage].uses_devices else None,
        contract=known_contract(run),
    )
    outcome = advance(run.draft, request)
    _follow(run, stage)
    if isinstance(outcome, StageResult):
        _finish(run, stage, request.name)
        return outcome
    if isinstance(outcome, Working):
        run.update(progress=progress.entered(run.status.progress, stage))
    if isinstance(outcome, Retry):
        count_usage(run, stage)
        run.update(retry=outcome.status)
        return outcome.halt
    if isinstance(outcome, StageFailed):
        _finish(run, stage, request.name)
        prepared = outcome.result.prepare if outcome.result is not None else None
        if prepared is not None:
            run.update(problems=shown_problems(prepared))
        run.draft.event(EventReason.STAGE_FAILED, f"{stage} failed: {outcome.message}", "Warning")
        return Failed(outcome.reason, outcome.message)
    return outcome


def without_result(stage: Stage) -> Failed:
    """The end of a run whose stage succeeded without saying what it made."""
    return Failed(
        Reason.RESULT_LOST,
        f"{stage} reports success but not what it made: check that the trainer image belongs to this release",
    )


def _inputs(run: Run, found: Prerequisites) -> StageInputs:
    secret = found.store.credentials_secret_ref
    return StageInputs(
        owner=run.job,
        run=run.job.uid,
        store_uri=found.store.uri,
        store_credentials=secret.name if secret else None,
        report=run.snapshot.facts.report,
        contract_version=found.trainer.contract,
        accelerators=1 if found.profile.spec.devices.resource == CPU else run.job.spec.compute.devices,
    )


def _build(
    run: Run, stage: Stage, config: Callable[[StageInputs], StageConfig]
) -> Manifest | Blocked | Failed:
    found = prerequisites(run)
    if isinstance(found, Blocked):
        return found
    keep(run, found)
    message = config(_inputs(run, found))
    unsent = check_config(message, found.profile)
    if unsent is not None:
        return unsent
    return build_stage_job(
        run.job,
        stage_job_name(run.job, stage),
        message,
        stage,
        _placement(run, found, stage),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def _probe(run: Run, stage: Stage) -> Probe:
    """Reading the stage's result, which every trainer can, shows whether the store answers; one of this
    release writes a file too."""
    name = stage_job_name(run.job, "collect", stage, "probe")
    return Probe(name, lambda: _build_collect(run, stage, name, probe=True))


def _build_collect(run: Run, stage: Stage, name: str, *, probe: bool = False) -> Manifest | Blocked | Failed:
    found = prerequisites(run)
    if isinstance(found, Blocked):
        return found
    return build_stage_job(
        run.job,
        name,
        collect_config(_inputs(run, found), stage, probe=probe),
        "collect",
        Placement(
            image=found.trainer.image,
            image_pull_policy=run.snapshot.facts.image_pull_policy,
            profile=found.profile,
            storage=Storage(store=parse_store(found.store.uri)),
            credentials=CredentialsMount(store=found.store.credentials_secret_ref),
        ),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def _placement(run: Run, found: Prerequisites, stage: Stage) -> Placement:
    spec = run.job.spec
    inline = spec.dataset.inline if stage == "prepare" else None
    base_model = spec.base_model if stage == "preflight" else None
    return Placement(
        image=found.trainer.image,
        image_pull_policy=run.snapshot.facts.image_pull_policy,
        profile=found.evaluate_profile if stage == "evaluate" else found.profile,
        storage=Storage(
            store=parse_store(found.store.uri),
            source=parse_source(inline.source.uri) if inline else None,
            base_model=parse_source(base_model.uri) if base_model and base_model.uri else None,
        ),
        credentials=CredentialsMount(
            store=found.store.credentials_secret_ref,
            source=inline.source.credentials_secret_ref if inline else None,
            base_model=base_model.credentials_secret_ref if base_model else None,
        ),
        devices=STAGES[stage].devices_of(spec.compute.devices),
        nodes=_nodes(run, stage),
        service=peer_name(run.job) if _nodes(run, stage) > 1 else None,
        peer_key=peer_name(run.job) if _nodes(run, stage) > 1 else None,
    )


def _peers(run: Run) -> Peers:
    return Peers(
        service=build_peer_service(run.job),
        policy=build_peer_policy(run.job, run.snapshot.facts.monitoring_namespace),
        key=lambda: build_peer_key(run.job, run.snapshot.entropy),
    )


def _nodes(run: Run, stage: Stage) -> int:
    return run.job.spec.compute.nodes if STAGES[stage].multi_node else 1


def _follow(run: Run, stage: Stage) -> None:
    """Progress from the newest report, and with it the time used so far; never one without the other, so that
    a pass in which nothing happened writes nothing."""
    report = run.snapshot.progress
    if report is None or report.stage != stage:
        return
    new = progress.merged(run.status.progress, stage, report.progress)
    if new != run.status.progress:
        run.update(progress=new)
        count_usage(run, stage)


def count_usage(run: Run, stage: Stage) -> None:
    """Add the time that the stage's pods have run since it was last counted."""
    job = run.snapshot.children[JOB].get(stage_job_name(run.job, stage))
    if job is None:
        return
    before = run.status.usage
    usage = stagetimes.stage_usage(before, stage, job, pods_of(job, run.snapshot), run.snapshot.now)
    if usage is None:
        return
    counted = before.device_seconds if before is not None and before.name == stage else 0
    profile = run.snapshot.profiles.get(job["metadata"].get("labels", {}).get(PROFILE, ""))
    price = stagetimes.Price(
        per_device_hour=profile.spec.price_per_device_hour if profile else None,
        currency=profile.spec.currency if profile else None,
    )
    run.update(usage=usage, cost=stagetimes.with_cost(run.status.cost, usage.device_seconds - counted, price))


def _finish(run: Run, stage: Stage, name: str) -> None:
    """Record the stage's times; they are final."""
    if name in run.snapshot.children[JOB]:
        count_usage(run, stage)
    others = tuple(entry for entry in run.status.stages if entry.name != stage)
    run.update(stages=(*others, stagetimes.finished_stage(run.status.usage, stage)), usage=None, retry=None)
