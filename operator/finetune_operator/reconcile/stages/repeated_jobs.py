# SPDX-License-Identifier: Apache-2.0
"""Jobs that are repeated every few minutes until they succeed: for endpoints, and to remove content."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.meta import Resource
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.jobs import JobConfig, build_stage_job
from finetune_operator.manifests.trainer_config import choose_trainer
from finetune_operator.observe import pod_termination
from finetune_operator.observe.job_problems import job_trouble, recheck_after_seconds
from finetune_operator.observe.pod_status import container_state, stage_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.passes import RETRY_SECONDS, Blocked, PlanBuilder, Working
from finetune_operator.reconcile.stages.jobs import (
    SETTLING_TIME,
    ended_at,
    has_ended,
    pods_of,
    wait_until_ended,
)
from finetune_operator.stage_table import JobStage
from finetune_operator.status.reasons import EventReason, Reason

Result = TypeVar("Result", bound=BaseModel)

RETRIES: Final = "the operator retries every 5 minutes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatedJob:
    """A Job whose end is its result."""

    owner: Resource
    name: str
    stage: JobStage
    profile: ComputeProfile | None
    config: Callable[[int], JobConfig]
    """Builds its config for a version of the contract."""
    reason: Reason
    """Reason while it runs."""
    doing: str
    """Sentence about what it does, for messages."""
    failure_reason: Reason
    """Reason after a failed attempt."""
    failure: str
    """Begin of the message about a failed attempt."""
    retries: str = RETRIES
    """End of that message."""
    announced: bool = True
    """Whether an event announces it."""

    def run(self, draft: PlanBuilder) -> Working | Blocked | None:
        """Create or follow the Job. Returns how the pass ends; None once the Job is complete."""
        job = self.found(draft)
        if job is None:
            if self.announced:
                draft.event(EventReason.STAGE_STARTED, self.doing)
            draft.start_job(self._build(draft))
            return Working(self.reason, self.doing)
        return self._follow(draft, job)

    def found(self, draft: PlanBuilder) -> Manifest | None:
        """The Job; None before it is created."""
        return draft.snapshot.children[JOB].get(self.name)

    def result(self, draft: PlanBuilder, model: type[Result]) -> Result | Working | Blocked:
        """The result in the termination message of the Job, or how the pass ends without it.

        A complete Job whose pod is gone is deleted: its work is in the store, where another Job finds it.
        """
        halt, job = self.run(draft), self.found(draft)
        if halt is not None or job is None:
            return halt or Working(self.reason, self.doing)
        for pod in pods_of(job, draft.snapshot):
            ended = container_state(pod).get("terminated", {})
            if ended.get("exitCode") == 0:
                try:
                    return model.model_validate_json(ended.get("message", ""))
                except ValidationError:
                    continue
        settles = ended_at(job, "Complete") + SETTLING_TIME - draft.snapshot.now
        if settles > timedelta():
            return Working(self.reason, self.doing, settles.total_seconds())
        draft.remove(job)
        return Working(self.reason, f"{self.doing} again, because the pod with its result is gone")

    def _build(self, draft: PlanBuilder) -> Manifest:
        facts = draft.snapshot.facts
        trainer = choose_trainer(self.profile, facts.trainer_image)
        inputs = facts.job_inputs(trainer.image, self.profile)
        return build_stage_job(self.owner, self.name, self.stage, self.config(trainer.contract), inputs)

    def _follow(self, draft: PlanBuilder, job: Manifest) -> Working | Blocked | None:
        now, pods = draft.snapshot.now, pods_of(job, draft.snapshot)
        if "deletionTimestamp" in job["metadata"]:
            message = f"{self.doing}: the pod of the previous attempt is ending"
            return wait_until_ended(pods, self.reason, message, now)
        if has_ended(job, "Complete"):
            return None
        if has_ended(job, "Failed"):
            left = ended_at(job, "Failed") + timedelta(seconds=RETRY_SECONDS) - now
            if left <= timedelta():
                draft.remove(job)
            message = pod_termination.find_failure(job, pods).message
            seconds = max(1.0, left.total_seconds())
            return Blocked(self.failure_reason, f"{self.failure}: {message}; {self.retries}", seconds)
        trouble = job_trouble(job, pods, draft.snapshot.admission_of(job), now)
        if trouble is None:
            return Working(self.reason, self.doing, recheck_after_seconds(pods, now))
        message = f"{self.doing}: {trouble.message}"
        if trouble.expected:
            return Working(self.reason, message, trouble.recheck_after_seconds)
        return Blocked(trouble.reason, message, None)


def keep_only(draft: PlanBuilder, stage: JobStage, name: str | None) -> None:
    """Delete the object's Jobs of this stage, except the one of this name."""
    for other, job in draft.snapshot.children[JOB].items():
        if other != name and stage_of(job) == stage:
            draft.remove(job, "Background")
