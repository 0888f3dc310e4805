"""How many endpoints of one ComputeProfile may be replacing what they serve at the same time."""

from collections.abc import Iterable

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment


def uses_profile(endpoint: InferenceDeployment, profile: ComputeProfile) -> bool:
    """Whether the endpoint's pods are made by this profile, by its name or because it is the default."""
    named = endpoint.spec.compute.profile
    return profile.is_default if named is None else named == profile.name


def is_replacing(endpoint: InferenceDeployment) -> bool:
    """Whether a new revision starts beside one that serves."""
    serving = endpoint.status.revision
    return bool(serving) and any(
        revision.state == "RollingOut" and revision.name != serving for revision in endpoint.status.revisions
    )


def must_wait(
    endpoint: InferenceDeployment, profile: ComputeProfile, everywhere: Iterable[InferenceDeployment]
) -> bool:
    """Whether as many other endpoints as the profile allows are rolling."""
    limit = profile.spec.max_concurrent_rollouts
    if limit is None:
        return False
    others = [other for other in everywhere if other.uid != endpoint.uid and uses_profile(other, profile)]
    return sum(map(is_replacing, others)) >= limit
