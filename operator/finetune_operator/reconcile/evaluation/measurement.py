# SPDX-License-Identifier: Apache-2.0
"""The measurement of the Checkpoints: which ones on which rows, the Jobs, and the recorded scores.

The Checkpoints and the rows of an Evaluation, chosen once and kept in `status.resolved`.

Build the Jobs that measure one Checkpoint: evaluate, and score for custom metrics.

Measure the Checkpoints one after the other, each by an evaluate Job of its own, and a score Job for custom
metrics.

One whose measurement fails does not keep the following ones from being measured.
"""

from functools import partial

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import ComparedChampion, EvaluationStatus
from finetune_operator.api.evaluation_resource import ResultStore, UnmeasuredCheckpoint
from finetune_operator.api.meta import SecretReference
from finetune_operator.api.pod_resources import CUDA_RESOURCES
from finetune_operator.manifests.configs import MeasuredData, collect_config, evaluate_config, score_config
from finetune_operator.manifests.jobs import CredentialsMount, Placement, Storage, build_stage_job
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.volumes import parse_store
from finetune_operator.manifests.weights import EvaluatedWeights, WeightsReference
from finetune_operator.plan import Manifest
from finetune_operator.reconcile import evaluation_stages
from finetune_operator.reconcile.evaluation.assessment import (
    STAGE,
    Assessment,
    number_of_results,
    settings_hash,
)
from finetune_operator.reconcile.evaluation_stages import (
    SCORE,
    EvaluationMounts,
    build_stage_isolation,
    check_custom_metrics,
    check_stores,
    compares_live,
    find_rival,
    has_begun,
    live_adapter,
    live_model,
    measured_data,
    resolve_rows,
    scored_folders,
)
from finetune_operator.reconcile.model_lines import is_resolved
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.platform.budgets import check_budget
from finetune_operator.reconcile.platform.profiles import check_config
from finetune_operator.reconcile.records.references import run_of
from finetune_operator.reconcile.stages.accounting import (
    finish,
    has_finished,
    lose_measurement,
    record,
    reopen,
    settle,
)
from finetune_operator.reconcile.stages.runner import advance, has_run, recreate_job, start
from finetune_operator.reconcile.stages.stage_request import (
    CannotStart,
    JobPurpose,
    Outcome,
    StageFailed,
    StageRequest,
    StartNeeded,
)
from finetune_operator.reconcile.verdicts import condense, evaluation_status, find_vetoes, notes, verdict_text
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.conditions import shorten
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.reserved_fields import find_unimplemented
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import EvaluateResult, StageResult
from finetune_trainer.contract.vocabulary import Stage


def validate(run: Assessment) -> Failed | None:
    """Refuse fields that this release does not implement."""
    messages = find_unimplemented(run.evaluation.spec)
    return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages)) if messages else None


def inputs(run: Assessment) -> PassOutcome | None:
    """Resolve the Checkpoints and the DatasetVersion before anything is measured."""
    if run.status.resolved.dataset_version is not None:
        return None
    evaluation = run.evaluation
    checkpoints: list[Checkpoint] = []
    for name in evaluation.spec.checkpoints:
        checkpoint = find_checkpoint(run, name)
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        checkpoints.append(checkpoint)
    version = resolve_rows(evaluation.spec.dataset, "spec.dataset", evaluation, run.snapshot)
    if not isinstance(version, DatasetVersion):
        return version
    references = {checkpoint.name: WeightsReference.of(checkpoint) for checkpoint in checkpoints}
    elsewhere = check_stores(
        version, ((reference.store, f"Checkpoint {name} is in") for name, reference in references.items())
    )
    if elsewhere is not None:
        return elsewhere
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    for reference in references.values():
        refused = check_custom_metrics(evaluation.spec, "spec.customMetrics", reference.store, found.profile)
        if refused is not None:
            return refused
    run.resolve(
        dataset_version=version.name,
        dataset_digest=version.spec.digest,
        checkpoint_digests=tuple(checkpoint.spec.digest for checkpoint in checkpoints),
        stores=tuple(
            ResultStore(uri=reference.store, credentials=reference.credentials)
            for reference in references.values()
        ),
    )
    return None


def find_checkpoint(run: Assessment, name: str) -> Checkpoint | Blocked | Failed:
    """The Checkpoint, unless it is missing, being deleted, or replaced.

    Once the Evaluation has begun, the deletion of a Checkpoint waits for it, so it is measured. One of the
    same name with other weights is not.
    """
    namespace, index = run.evaluation.namespace, run.snapshot.checkpoints
    begun = run.status.resolved.dataset_version is not None
    checkpoint = index.get(name) if begun else index.live(name)
    if checkpoint is None:
        return Blocked(
            Reason.CHECKPOINT_NOT_FOUND,
            f"Checkpoint {name} of spec.checkpoints does not exist in namespace {namespace}, or is being"
            " deleted: wait until it is recorded, restore it, or name another one in a new Evaluation"
            f" (kubectl get checkpoints -n {namespace})",
        )
    if not is_resolved(run.evaluation, checkpoint):
        return Failed(
            Reason.CHECKPOINT_REPLACED,
            f"Checkpoint {name} has other weights than at the start of the Evaluation, because it was deleted"
            " and created again: measure them with a new Evaluation",
        )
    return checkpoint


def keep(run: Assessment) -> None:
    """Record the profile and the trainer of the first Job; later ones use the same."""
    found = run.prerequisites
    if not isinstance(found, Blocked):
        run.resolve(
            profile=found.profile.name,
            trainer_image=found.trainer.image,
            trainer_contract=found.trainer.contract,
        )


def build_job(
    run: Assessment, request: StageRequest, purpose: JobPurpose, checkpoint: Checkpoint
) -> Manifest | Blocked | Failed | Working:
    """The Job that `advance` needs, or which prerequisite is missing."""
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    evaluation, reference = run.evaluation, WeightsReference.of(checkpoint)
    missing = storage.check_store(reference.store, found.profile, evaluation.namespace, run.snapshot)
    if missing is not None:
        return missing
    secret, stage = reference.credentials, _stage_of(request, purpose)
    row = STAGES[stage]
    devices = evaluation.spec.compute.devices if row.uses_devices else 0
    on_cuda = found.profile.spec.accelerator.resource.startswith(CUDA_RESOURCES)
    inputs = StageInputs(
        owner=evaluation,
        run=request.run,
        store_uri=reference.store,
        store_credentials=secret,
        report=run.snapshot.facts.report,
        contract_version=found.trainer.contract,
        requested_accelerators=devices if on_cuda else 0,
    )
    config: StageConfig | Failed | Blocked
    if purpose == "stage":
        waiting = check_budget(found.profile, request.stage, evaluation.namespace, run.snapshot)
        if waiting is not None:
            return waiting
        keep(run)
        config = _config(run, request.stage, inputs, checkpoint, found.profile)
        if not isinstance(config, StageConfig):
            return config
        unsent = check_config(config, found.profile)
        if unsent is not None:
            return unsent
    else:
        config = collect_config(inputs, request.stage, probe=purpose == "probe")
    job, mounts = run_of(checkpoint, run.snapshot), EvaluationMounts.of(stage, evaluation.spec)
    return build_stage_job(
        evaluation,
        request.names.of_purpose(purpose),
        config,
        stage,
        Placement(
            image=found.trainer.image,
            image_pull_policy=run.snapshot.facts.image_pull_policy,
            profile=found.profile,
            storage=Storage(
                store=parse_store(reference.store),
                custom_metrics=mounts.custom_metrics,
                tasks=mounts.tasks,
                folders=scored_folders(
                    stage, reference.store, request.run, run.status.resolved.dataset_digest
                ),
            ),
            credentials=CredentialsMount(
                store=SecretReference(name=secret) if secret and not row.isolated else None,
                judges=mounts.judges,
            ),
            devices=devices,
            prediction=job.status.prediction if job is not None else None,
            chosen=evaluation.spec.compute,
        ),
        nonce_key=run.snapshot.facts.nonce_key,
    )


def _stage_of(request: StageRequest, purpose: JobPurpose) -> JobStage:
    """The stage that the pod runs. Collect reads the result of another one."""
    return request.stage if purpose == "stage" else "collect"


def _config(
    run: Assessment, stage: Stage, inputs: StageInputs, checkpoint: Checkpoint, profile: ComputeProfile
) -> StageConfig | Failed | Blocked:
    spec, data = run.evaluation.spec, _data(run, checkpoint)
    if stage == SCORE:
        # The profile may have changed since the start of the Evaluation.
        refused = check_custom_metrics(spec, "spec.customMetrics", inputs.store_uri, profile)
        return refused or score_config(inputs, spec, data)
    return evaluate_config(
        inputs,
        spec,
        EvaluatedWeights.of(checkpoint),
        data,
        live=live_model(run),
        live_adapter=live_adapter(run),
        profile=profile,
        step_timeout_seconds=spec.compute.step_timeout_seconds,
    )


def _data(run: Assessment, checkpoint: Checkpoint) -> MeasuredData:
    resolved = run.status.resolved
    trained = run.snapshot.datasetversions.get(checkpoint.spec.lineage.dataset_version)
    return measured_data(
        run,
        resolved.dataset_version,
        resolved.dataset_digest,
        split=run.evaluation.spec.dataset.split,
        training=None if trained is None else trained.spec.digest,
    )


def measure(run: Assessment) -> PassOutcome | None:
    """Record the scores of each Checkpoint, or why it has none; None once all are recorded."""
    while run.current is not None:
        checkpoint = find_checkpoint(run, run.current)
        known = _known_scores(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if known is not None:
            _record(run, known)
            continue
        chosen = _choose_champion(run, checkpoint) if isinstance(checkpoint, Checkpoint) else None
        if chosen is not None:
            return chosen
        run_stage = partial(_stage, run, checkpoint)
        measured = evaluation_stages.measure(run, run.evaluation.spec, run_stage)
        if isinstance(measured, Failed):
            _record_failure(run, measured.reason, measured.message)
        elif isinstance(measured, EvaluateResult):
            _record(run, _entry(run, measured))
        else:
            return measured
    usage = run.status.usage
    if usage is not None:
        run.update(usage=usage.model_copy(update={"settled_device_seconds": None}))
        finish(run, STAGE)
    return None


def _choose_champion(run: Assessment, checkpoint: Checkpoint) -> Working | None:
    """Record the champion of the Checkpoint's model line; None once it is recorded.

    It is recorded before the Job that measures it is created, so that its content is not removed meanwhile.
    Before there is a Job, another champion replaces it, so that its deletion waits for nothing else.
    """
    if not compares_live(run.evaluation.spec):
        return None
    now = find_rival(run.snapshot, checkpoint.spec.model_line, checkpoint.name)
    if has_begun(run, STAGE) or (run.status.live or ComparedChampion()) == now:
        return None
    run.update(live=now if now.checkpoint else None)
    described = f"champion {now.checkpoint}" if now.checkpoint else "no champion"
    return Working(Reason.QUEUED, f"comparing {checkpoint.name} with {described}")


def _stage(
    run: Assessment, checkpoint: Checkpoint | Blocked | Failed, stage: Stage
) -> StageResult | PassOutcome:
    """The result of one stage, once the status has its times."""
    outcome = _advance(run, stage, checkpoint)
    if isinstance(outcome, StageResult) and has_finished(run, stage):
        return outcome
    recorded = record(run, stage, outcome)
    return Failed(recorded.reason, recorded.message) if isinstance(recorded, StageFailed) else recorded


def _continue_times(run: Assessment) -> None:
    """Continue the times of evaluate after those of score."""
    usage = run.status.usage
    if usage is not None and usage.name != STAGE:
        finish(run, usage.name)
    if has_finished(run, STAGE):
        reopen(run, STAGE)


def _known_scores(run: Assessment, checkpoint: Checkpoint) -> EvaluationStatus | None:
    """The scores that this Evaluation measured before its status was lost, as after a restore."""
    return next(
        (
            each
            for each in checkpoint.status.evaluations
            if each.source == run.evaluation.name
            and each.dataset_digest == run.status.resolved.dataset_digest
            and each.settings_hash == settings_hash(run.evaluation)
        ),
        None,
    )


def _advance(run: Assessment, stage: Stage, checkpoint: Checkpoint | Blocked | Failed) -> Outcome:
    request = StageRequest(
        stage=stage,
        run=run.run,
        names=run.job_names(stage),
        isolation=build_stage_isolation(run.evaluation, stage),
        retry=run.status.retry,
        note=f" for Checkpoint {run.current}",
    )
    answer = advance(run.draft, request)
    if isinstance(answer, StartNeeded):
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        return start(run.draft, request, answer, build_job(run, request, answer.purpose, checkpoint))
    if isinstance(answer, CannotStart):
        answer = _create_again(run, request, answer, checkpoint)
    # The operator may have ended between the creation of the Job and the write of the status.
    keep(run)
    return answer


def _create_again(
    run: Assessment, request: StageRequest, stuck: CannotStart, checkpoint: Checkpoint | Blocked | Failed
) -> Outcome:
    """Create a Job again that cannot start. The first one takes the present image."""
    if not isinstance(checkpoint, Checkpoint) or has_run(run, request.stage):
        return stuck.waiting
    trial = run.trial(begins_anew=not number_of_results(run.status))
    again = recreate_job(run.draft, stuck, build_job(trial, request, "stage", checkpoint))
    if again is None:
        return stuck.waiting
    run.update(resolved=trial.status.resolved)
    return again


def _entry(run: Assessment, result: EvaluateResult) -> EvaluationStatus:
    resolved, champion = run.status.resolved, _champion_of(run, result.live)
    entry = evaluation_status(
        run.evaluation.spec,
        result,
        checkpoint=run.current or "",
        source=run.evaluation.name,
        dataset_version=resolved.dataset_version,
        dataset_digest=resolved.dataset_digest,
        champion=champion,
        live=champion,
    )
    return condense(entry).model_copy(
        update={
            "settings_hash": settings_hash(run.evaluation),
            "measured_at": run.snapshot.now.replace(microsecond=0),
        }
    )


def _champion_of(run: Assessment, digest: str | None) -> str | None:
    """Name of the Checkpoint that was measured as Live."""
    index, name = run.snapshot.checkpoints, run.current or ""
    if digest is None:
        return None
    rivals = index.of_line(index.line_of(name) or "")
    return next((each.name for each in rivals if each.spec.digest == digest), None)


def _record(run: Assessment, entry: EvaluationStatus) -> None:
    _continue_times(run)
    settle(run)
    run.update(evaluations=(*run.status.evaluations, entry), progress=None, retry=None, live=None)
    if entry.verdict in {"Failed", "Undecided"}:
        message = f"Checkpoint {entry.checkpoint}: {verdict_text(entry)}"
        reason = EventReason.VETOED if find_vetoes(entry) else EventReason.GATE_FAILED
        run.draft.event(reason, message, "Warning")
    for note in notes(run.evaluation.spec, entry):
        run.draft.event(EventReason.EVALUATION_WARNING, f"Checkpoint {entry.checkpoint}: {note}", "Warning")
    number, all_names = len(run.status.evaluations), run.evaluation.spec.checkpoints
    if number == len(all_names):
        plural = "s" if number > 1 else ""
        run.condition(
            ConditionType.EVALUATED,
            Reason.SUCCEEDED,
            f"{number} Checkpoint{plural} measured on DatasetVersion {run.status.resolved.dataset_version}",
        )


def _record_failure(run: Assessment, reason: str, message: str) -> None:
    name = run.current or ""
    _continue_times(run)
    lose_measurement(run, reason)
    failure = UnmeasuredCheckpoint(checkpoint=name, reason=reason, message=shorten(message))
    run.update(unmeasured=(*run.status.unmeasured, failure), progress=None, retry=None, live=None)
    text = f"the measurement failed. Checkpoint {name}: {message}"
    run.draft.event(EventReason.STAGE_FAILED, text, "Warning")
