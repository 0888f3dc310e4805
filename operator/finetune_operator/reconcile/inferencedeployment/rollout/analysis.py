# SPDX-License-Identifier: Apache-2.0
"""The analysis of the wanted revision: its Job, the result, and the sentences about the figures.

The Job's name depends on when the step or the bake began, so the result of an earlier attempt does not count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from finetune_operator.api.inference_deployment import InferenceDeployment, RevisionStatus
from finetune_operator.api.labels import REVISION
from finetune_operator.api.rollout_analysis import (
    AnalysisFigureStatus,
    AnalysisGate,
    RevisionAnalysis,
    StepAnalysis,
)
from finetune_operator.engine.resources import DEPLOYMENT, JOB, POD
from finetune_operator.manifests.analysis_job import (
    MeasuredPods,
    analyze_config,
    build_analysis_job,
    served_digests,
)
from finetune_operator.manifests.labels import stage_job_name
from finetune_operator.manifests.revision import Revision
from finetune_operator.manifests.trainer_config import choose_trainer
from finetune_operator.observe import pod_termination
from finetune_operator.observe.deployments import is_replaced
from finetune_operator.observe.job_problems import job_trouble
from finetune_operator.observe.pod_status import container_state, has_condition, stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import PlanBuilder
from finetune_operator.reconcile.stages.jobs import (
    SETTLING_TIME,
    Expected,
    ended_at,
    find_last_result,
    find_success,
    has_ended,
    is_foreign,
    pods_of,
    report_foreign_job,
)
from finetune_operator.status.conditions import shorten
from finetune_trainer.contract.analysis import AnalysisFigure, AnalyzeResult
from finetune_trainer.contract.configs import ProbedModel
from finetune_trainer.contract.vocabulary import ANALYZE


def figure_sentence(figure: AnalysisFigure, gate: AnalysisGate) -> str:
    """Figure and bounds of a gate.

    `error_rate 0.3 (at least 0.2; max 0.05; stable 0 + 0.02)`, or of the worst model
    `exact_match of tuned 0.3 (at most 0.5; 60 rows; min 0.8; stable 0.9 - 0.05)`.
    """
    quantile = f" p{figure.quantile * 100:g}" if figure.quantile is not None else ""
    model = f" of {figure.model}" if figure.model is not None else ""
    is_lower = gate.min is not None or gate.max_decrease is not None
    stable = "unknown" if figure.stable is None else f"{figure.stable:g}"
    details = [
        *(_limit(figure, is_lower=is_lower) if figure.verdict == "Fail" else []),
        *([f"{figure.rows} rows"] if figure.rows is not None else []),
        *([f"min {gate.min:g}"] if gate.min is not None else []),
        *([f"stable {stable} - {gate.max_decrease:g}"] if gate.max_decrease is not None else []),
        *([f"max {gate.max:g}"] if gate.max is not None else []),
        *([f"stable {stable} + {gate.max_increase:g}"] if gate.max_increase is not None else []),
        *([f"stable {stable} × {gate.max_ratio:g}"] if gate.max_ratio is not None else []),
    ]
    value = "unknown" if figure.value is None else f"{figure.value:g}"
    return f"{figure.metric}{quantile}{model} {value} ({'; '.join(details)})"


def _limit(figure: AnalysisFigure, *, is_lower: bool) -> list[str]:
    """The bound of the figure that misses the bound of the gate."""
    bound, word = (figure.high, "at most") if is_lower else (figure.low, "at least")
    return [] if bound is None else [f"{word} {bound:g}"]


@dataclass(frozen=True, slots=True)
class AnalyzedPhase:
    """The step or the bake in which a revision is measured."""

    stable: str
    """The revision to compare with."""
    since: datetime
    """When it began."""
    duration_seconds: int
    """Seconds of the measurement before it can pass."""
    step: int | None = None
    """Index of the step; None in a bake."""
    bake_seconds: int | None = None
    """Seconds of the bake; None in a step."""


@dataclass(frozen=True)
class Analysis:
    """The analysis of a revision in one phase of its rollout."""

    endpoint: InferenceDeployment
    snapshot: Snapshot
    revision: Revision
    phase: AnalyzedPhase

    @property
    def name(self) -> str:
        """Name of the Job. Other settings or another attempt have another Job."""
        settings, phase = self.endpoint.spec.strategy.analysis, self.phase
        parts = (phase.since.isoformat(), phase.step, phase.duration_seconds, phase.bake_seconds)
        text = "" if settings is None else settings.model_dump_json(exclude_none=True)
        return stage_job_name(self.endpoint, ANALYZE, self.revision.name, *map(str, parts), text)

    @property
    def message(self) -> str:
        """What the analysis does, or found."""
        if self.result is not None:
            return self.result.message
        job, snapshot = self._job, self.snapshot
        if job is None:
            return "it is being analyzed" if self._new_pods else "its analysis starts when its pods are ready"
        trouble = job_trouble(job, self._pods, snapshot.admission_of(job), snapshot.now)
        return "it is being analyzed" if trouble is None else f"its analysis waits: {trouble.message}"

    @cached_property
    def result(self) -> RevisionAnalysis | None:
        """The result; None until there is one."""
        job = self._job
        if job is None or "deletionTimestamp" in job["metadata"]:
            return None
        if is_foreign(job):
            return self._inconclusive(report_foreign_job(job).message)
        if has_ended(job, "Complete"):
            found = find_success(self._pods, job, self._expected)
            if found is not None and found.analyze is not None:
                return self._measured(found.analyze)
            if self._has_message:
                return self._inconclusive("its result cannot be read by this operator")
        if has_ended(job, "Failed") and self._is_settled("Failed"):
            word = find_last_result(self._pods, job, self._expected)
            failure = (
                word.message if word is not None else pod_termination.find_failure(job, self._pods).message
            )
            return self._inconclusive(failure)
        return None

    def draft(self, *, may_start: bool) -> PlanBuilder:
        """Creation of the Job if it may start, and removal of one whose result was lost with its pod.

        The Job measures the pods of its start. A Deployment can report a ready pod before the pod is read.
        """
        draft, job = PlanBuilder(self.snapshot), self._job
        if job is None and may_start and self._new_pods:
            draft.start_job(self._build())
        is_lost = job is not None and has_ended(job, "Complete") and self.result is None
        if job is not None and is_lost and self._is_settled("Complete"):
            draft.remove(job, "Background")
        return draft

    @property
    def requeue_after(self) -> float | None:
        """Seconds until a Job that has ended counts as one without a result; None if that is not awaited."""
        is_ended = self._job is not None and any(has_ended(self._job, how) for how in ("Complete", "Failed"))
        return SETTLING_TIME.total_seconds() + 1 if is_ended and self.result is None else None

    @property
    def _job(self) -> Manifest | None:
        return self.snapshot.children[JOB].get(self.name)

    @cached_property
    def _pods(self) -> list[Manifest]:
        return [] if self._job is None else pods_of(self._job, self.snapshot)

    @property
    def _expected(self) -> Expected:
        return Expected(self.endpoint.uid, ANALYZE)

    @property
    def _has_message(self) -> bool:
        return any(container_state(pod).get("terminated", {}).get("message") for pod in self._pods)

    def _is_settled(self, how: str) -> bool:
        assert self._job is not None  # noqa: S101 - the caller checks
        return self.snapshot.now - ended_at(self._job, how) >= SETTLING_TIME or self._has_message

    def _build(self) -> Manifest:
        facts, phase = self.snapshot.facts, self.phase
        trainer = choose_trainer(self.revision.profile, facts.trainer_image)
        pods = MeasuredPods(
            self._new_pods,
            tuple(self._ready_pods(phase.stable)),
            tuple(self._probed_models()),
            self._digests_of(self.revision.name),
            self._digests_of(phase.stable),
        )
        config = analyze_config(
            self.endpoint,
            self.revision,
            trainer.contract,
            pods,
            stable=phase.stable,
            duration_seconds=phase.duration_seconds,
            bake_seconds=phase.bake_seconds,
        )
        inputs = facts.job_inputs(trainer.image, self.revision.profile)
        return build_analysis_job(self.endpoint, self.name, config, inputs)

    def _probed_models(self) -> Iterator[ProbedModel]:
        """The models, with the rows of the stable revision's model of this name, else with their own."""
        revisions = self.endpoint.status.revisions
        models = next((each.models for each in revisions if each.name == self.phase.stable), ())
        stable = {model.name: model.checkpoint for model in models}
        for name, weights in self.revision.models:
            datasets = map(self._dataset_of, (stable.get(name), weights.checkpoint))
            yield ProbedModel(
                name=name,
                dataset=next(filter(None, datasets), None),
                is_new=bool(stable) and name not in stable,
                reasoning_parser=weights.reasoning_parser,
            )

    def _dataset_of(self, checkpoint: str | None) -> str | None:
        """Digest of the rows of a Checkpoint; None if they are not in the store of the revision."""
        found = self.snapshot.checkpoints.get(checkpoint or "")
        used = found.spec.lineage.dataset_version if found is not None else ""
        version = self.snapshot.datasetversions.get(used)
        is_stored = version is not None and self.revision.store in version.status.locations
        return version.spec.digest if version is not None and is_stored else None

    def _digests_of(self, revision: str) -> tuple[str, ...]:
        settings = self.endpoint.spec.strategy.analysis
        deployment = self.snapshot.children[DEPLOYMENT].get(revision)
        has_probe = settings is not None and settings.probe is not None
        return served_digests(deployment) if has_probe and deployment is not None else ()

    @cached_property
    def _new_pods(self) -> tuple[Manifest, ...]:
        return tuple(self._ready_pods(self.revision.name))

    def _ready_pods(self, revision: str) -> Iterable[Manifest]:
        return (
            pod
            for pod in self.snapshot.children[POD].values()
            if pod["metadata"].get("labels", {}).get(REVISION) == revision
            and has_condition(pod, "Ready", "True")
            and not is_replaced(pod)
        )

    def _inconclusive(self, why: str) -> RevisionAnalysis:
        message = shorten(f"its analysis could not run: {why}")
        return RevisionAnalysis(step=self.phase.step, verdict="Inconclusive", message=message)

    def _measured(self, found: AnalyzeResult) -> RevisionAnalysis:
        settings = self.endpoint.spec.strategy.analysis
        gates = () if settings is None else settings.gates
        shown = [
            figure_sentence(figure, gate)
            for figure, gate in zip(found.figures, gates, strict=False)
            if found.verdict in {"Pass", figure.verdict}
        ]
        ended = {"Pass": "has passed", "Fail": "failed", "Inconclusive": "was inconclusive"}.get(
            found.verdict, found.verdict
        )
        problem = f"; {found.problem}" if found.problem and found.verdict != "Pass" else ""
        message = (
            f"its analysis {ended} after {found.requests} requests, and {found.stable_requests} of the stable"
            f" revision: {', '.join(shown) or 'no figures'}{problem}"
        )
        return RevisionAnalysis(
            step=self.phase.step,
            verdict=found.verdict,
            requests=found.requests,
            stable_requests=found.stable_requests,
            message=shorten(message),
            figures=tuple(AnalysisFigureStatus(**each.model_dump()) for each in found.figures),
        )


def phase_of(
    endpoint: InferenceDeployment,
    entry: RevisionStatus | None,
    step: StepAnalysis | None,
    *,
    stable: str,
    standby: str,
) -> AnalyzedPhase | None:
    """The step or the bake in which the revision with this entry is measured; None if it is not.

    Args:
        endpoint: the endpoint.
        entry: entry of the revision in the status.
        step: what the step that the revision has reached measures.
        stable: the revision to compare with.
        standby: the revision that is kept during a bake; empty if there is none.
    """
    settings, bake = endpoint.spec.strategy.analysis, endpoint.spec.strategy.bake_seconds
    if settings is None or entry is None or entry.since is None:
        return None
    if entry.state == "Canary" and step is not None:
        seconds = min(step.duration_seconds or settings.duration_seconds, settings.max_duration_seconds)
        return AnalyzedPhase(stable, entry.since, seconds, step=entry.step)
    if entry.state == "Baking" and standby and bake is not None:
        return AnalyzedPhase(standby, entry.since, min(settings.duration_seconds, bake), bake_seconds=bake)
    return None


def analysis_draft(analysis: Analysis | None, snapshot: Snapshot, *, may_start: bool) -> PlanBuilder:
    """Writes for the analysis, and removal of the Jobs of earlier ones."""
    draft = PlanBuilder(snapshot) if analysis is None else analysis.draft(may_start=may_start)
    for name, job in snapshot.children[JOB].items():
        if stage_of(job) == ANALYZE and (analysis is None or name != analysis.name):
            draft.remove(job, "Background")
    return draft
