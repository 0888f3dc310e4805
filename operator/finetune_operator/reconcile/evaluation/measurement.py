# SPDX-License-Identifier: Apache-2.0
"""The measurement of the Checkpoints: which ones on which rows, the Jobs, and the recorded scores.

The Checkpoints and the rows are chosen once and kept in `status.resolved`. Each Checkpoint is measured by an
evaluate Job of its own, and a score Job for custom metrics, one after the other. One whose measurement fails
does not keep the following ones from being measured.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import ComparedChampion, EvaluationStatus
from finetune_operator.api.evaluation_resource import ResultStore, UnmeasuredCheckpoint
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.api.pod_resources import CUDA_RESOURCES
from finetune_operator.manifests.configs import MeasuredData, evaluate_config, score_config
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.weights import EvaluatedWeights, WeightsReference
from finetune_operator.reconcile import evaluation_stages
from finetune_operator.reconcile.evaluation.assessment import (
    STAGE,
    Assessment,
    number_of_results,
    settings_hash,
)
from finetune_operator.reconcile.evaluation_stages import check_stores, measured_data, resolve_rows
from finetune_operator.reconcile.features.champion import (
    describe_champion,
    find_rival,
    has_begun,
    live_adapter,
    live_model,
)
from finetune_operator.reconcile.features.custom_metrics import (
    SCORE,
    build_stage_isolation,
    scored_folders,
)
from finetune_operator.reconcile.features.feature import Permission
from finetune_operator.reconcile.features.registry import config_fields, evaluation_volumes, find_refusal
from finetune_operator.reconcile.inputs.snapshot import run_of
from finetune_operator.reconcile.model_lines import is_resolved
from finetune_operator.reconcile.passes import Blocked, Failed, PassOutcome, Working
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.stages import runner
from finetune_operator.reconcile.stages.accounting import (
    finish,
    has_finished,
    lose_measurement,
    record,
    reopen,
    settle,
)
from finetune_operator.reconcile.stages.stage_request import (
    Outcome,
    StageFailed,
    StageOwner,
    StageRequest,
    StageSetting,
)
from finetune_operator.reconcile.verdicts import condense, evaluation_status, find_vetoes, notes, verdict_text
from finetune_operator.stage_table import STAGES, JobStage
from finetune_operator.status.conditions import shorten
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
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
        refused = find_refusal(Permission(evaluation.spec, "spec", reference.store, found.profile))
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


@dataclass(frozen=True, slots=True)
class _Measurement(StageOwner):
    """A stage that measures one Checkpoint, if it was found."""

    run: Assessment
    stage: Stage
    checkpoint: Checkpoint | Blocked | Failed

    def setting(self, stage: JobStage) -> StageSetting | Blocked | Failed:
        run, checkpoint = self.run, self.checkpoint
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        found = run.prerequisites
        if isinstance(found, Blocked):
            return found
        evaluation, reference, snapshot = run.evaluation, WeightsReference.of(checkpoint), run.snapshot
        missing = storage.check_store(reference.store, found.profile, evaluation.namespace, snapshot)
        if missing is not None:
            return missing
        devices = evaluation.spec.compute.devices if STAGES[stage].uses_devices else 0
        on_cuda = found.profile.spec.accelerator.resource.startswith(CUDA_RESOURCES)
        job = run_of(checkpoint, snapshot)
        return StageSetting(
            StageInputs(
                owner=evaluation,
                run=run.run,
                store_uri=reference.store,
                store_credentials=reference.credentials,
                report=snapshot.facts.report,
                contract_version=found.trainer.contract,
                requested_accelerators=devices if on_cuda else 0,
            ),
            replace(
                snapshot.facts.job_inputs(found.trainer.image, found.profile),
                devices=devices,
                prediction=job.status.prediction if job is not None else None,
                chosen=evaluation.spec.compute,
                volumes=evaluation_volumes(stage, evaluation.spec),
                store=scored_folders(stage, reference.store, run.run, run.status.resolved.dataset_digest),
            ),
        )

    def config(self, inputs: StageInputs) -> StageConfig | Failed | Blocked:
        run, checkpoint = self.run, self.checkpoint
        found = run.prerequisites
        if not isinstance(checkpoint, Checkpoint):
            return checkpoint
        if isinstance(found, Blocked):
            return found
        return _config(run, self.stage, inputs, checkpoint, found.profile)

    def keep(self) -> None:
        keep(self.run)

    def trial(self) -> Self | None:
        """The first Job takes the present image."""
        if self.run.has_run(self.stage):
            return None
        return replace(self, run=self.run.trial(begins_anew=not number_of_results(self.run.status)))

    def adopt(self, trial: Self) -> None:
        self.run.update(resolved=trial.run.status.resolved)


def _config(
    run: Assessment, stage: Stage, inputs: StageInputs, checkpoint: Checkpoint, profile: ComputeProfile
) -> StageConfig | Failed | Blocked:
    spec, data = run.evaluation.spec, _data(run, checkpoint)
    live = live_model(run)
    features = config_fields(stage, spec, run.status.resolved, has_champion=live is not None)
    if stage == SCORE:
        # The profile may have changed since the start of the Evaluation.
        refused = find_refusal(Permission(spec, "spec", inputs.store_uri, profile))
        return refused or score_config(inputs, spec, data, **features)
    return evaluate_config(
        inputs,
        spec,
        EvaluatedWeights.of(checkpoint),
        data,
        features=features,
        live=live,
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
    if not run.evaluation.spec.compares_live:
        return None
    now = find_rival(run.snapshot, checkpoint.spec.model_line, checkpoint.name)
    if has_begun(run, STAGE) or (run.status.live or ComparedChampion()) == now:
        return None
    run.update(live=now if now.checkpoint else None)
    return Working(Reason.QUEUED, f"comparing {checkpoint.name} with {describe_champion(now)}")


def _stage(
    run: Assessment, checkpoint: Checkpoint | Blocked | Failed, stage: Stage
) -> StageResult | PassOutcome:
    """The result of one stage, once the status has its times."""
    outcome = _run(run, stage, checkpoint)
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


def _run(run: Assessment, stage: Stage, checkpoint: Checkpoint | Blocked | Failed) -> Outcome:
    request = StageRequest(
        stage=stage,
        run=run.run,
        names=run.job_names(stage),
        isolation=build_stage_isolation(run.evaluation, stage),
        retry=run.status.retry,
        note=f" for Checkpoint {run.current}",
    )
    outcome = runner.run_stage(run.draft, request, _Measurement(run, stage, checkpoint))
    # The operator may have ended between the creation of the Job and the write of the status.
    if has_begun(run, stage):
        keep(run)
    return outcome


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
