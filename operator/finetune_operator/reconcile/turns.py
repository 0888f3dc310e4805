"""Which passes must not overlap, because each decides by what the others have written."""

from collections.abc import Mapping

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Resource


def turn(resource: Resource, profiles: Mapping[str, ComputeProfile]) -> tuple[str, ...] | None:
    """The thing that this pass has to be alone with, or None.

    A line's Checkpoints are promoted one by one: two at once would both count as judged against the champion
    that only the first of them replaces. Endpoints whose profile limits rollouts are counted one by one.
    """
    if isinstance(resource, Checkpoint):
        return ("model line", resource.namespace, resource.spec.model)
    if isinstance(resource, InferenceDeployment):
        profile = _limiting(resource, profiles)
        return None if profile is None else ("rollouts", profile.name)
    return None


def _limiting(endpoint: InferenceDeployment, profiles: Mapping[str, ComputeProfile]) -> ComputeProfile | None:
    """The endpoint's profile, where it limits rollouts."""
    named = endpoint.spec.compute.profile
    if named is None:
        own = [profile for profile in profiles.values() if profile.is_default]
    else:
        own = [profiles[named]] if named in profiles else []
    return next((profile for profile in own if profile.spec.max_concurrent_rollouts is not None), None)
