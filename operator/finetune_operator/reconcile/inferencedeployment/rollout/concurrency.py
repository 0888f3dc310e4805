# SPDX-License-Identifier: Apache-2.0
"""The limit of endpoints of one ComputeProfile that replace their revision at the same time."""

from collections.abc import Iterable
from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment

DEFAULT_PER_NAMESPACE: Final = 1


def uses_profile(endpoint: InferenceDeployment, profile: ComputeProfile) -> bool:
    """Whether the endpoint uses this profile, by name or because it is the default."""
    named = endpoint.spec.compute.profile
    return profile.is_default if named is None else named == profile.name


def is_replacing(endpoint: InferenceDeployment) -> bool:
    """Whether a new revision is starting next to one that serves. A paused rollout is not."""
    serving = endpoint.status.revision
    if endpoint.spec.strategy.paused:
        return False
    return bool(serving) and any(
        revision.state == "RollingOut" and revision.name != serving for revision in endpoint.status.revisions
    )


def must_wait(
    endpoint: InferenceDeployment, profile: ComputeProfile, everywhere: Iterable[InferenceDeployment]
) -> bool:
    """Whether other endpoints use all rollouts that the profile allows, by default one per namespace."""
    limit = profile.spec.max_concurrent_rollouts
    others = [other for other in everywhere if other.uid != endpoint.uid and uses_profile(other, profile)]
    if limit is None:
        others = [other for other in others if other.namespace == endpoint.namespace]
    return sum(map(is_replacing, others)) >= (DEFAULT_PER_NAMESPACE if limit is None else limit)
