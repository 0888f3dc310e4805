"""Which passes must not overlap, because each decides by what the others have written."""

from collections.abc import Iterable

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource
from finetune_operator.reconcile.rolloutlimit import is_on


def turn(resource: Resource, profiles: Iterable[ComputeProfile]) -> tuple[str, ...] | None:
    """The thing that this pass has to be alone with, or None.

    A line's Checkpoints are promoted one by one: two at once would both count as judged against the champion
    that only the first of them replaces. Endpoints whose profile limits rollouts are counted one by one.
    """
    if isinstance(resource, Checkpoint):
        return ("model line", resource.namespace, resource.spec.model)
    if isinstance(resource, InferenceDeployment):
        for profile in profiles:
            if profile.spec.max_concurrent_rollouts is not None and is_on(resource, profile):
                return ("rollouts", profile.name)
    return None
