"""The Kueue LocalQueue of a stage."""

from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.stagetable import STAGES, JobStage

QUEUE_LABEL: Final = "kueue.x-k8s.io/queue-name"
"""With this label, Kueue writes the Job's `suspend`; the operator never writes that field."""


def queue_of(stage: JobStage, profile: ComputeProfile | None) -> str | None:
    """Name of the LocalQueue in which the Jobs of the stage wait; None if they do not wait."""
    row = STAGES[stage]
    if profile is None or not row.queued:
        return None
    queue: str | None = getattr(profile.spec.queues, row.queue, None)
    return queue
