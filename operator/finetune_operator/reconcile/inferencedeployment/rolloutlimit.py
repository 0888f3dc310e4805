"""The limit of endpoints of one ComputeProfile that replace their revision at the same time."""

from collections.abc import Iterable

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment


def uses_profile(endpoint: InferenceDeployment, profile: ComputeProfile) -> bool:
    """Whether the endpoint uses this profile, by name or because it is the default."""
    named = endpoint.spec.compute.profile
    return profile.is_default if named is None else named == profile.name


def is_replacing(endpoint: InferenceDeployment) -> bool:
    """Whether a new revision is starting next to one that serves."""
    serving = endpoint.status.revision
    return bool(serving) and any(
        revision.state == "RollingOut" and revision.name != serving for revision in endpoint.status.revisions
    )


def must_wait(
    endpoint: InferenceDeployment, profile: ComputeProfile, everywhere: Iterable[InferenceDeployment]
) -> bool:
    """Whether other endpoints use all rollouts that the profile allows."""
    limit = profile.spec.max_concurrent_rollouts
    if limit is None:
        return False
    others = [other for other in everywhere if other.uid != endpoint.uid and uses_profile(other, profile)]
    return sum(map(is_replacing, others)) >= limit
