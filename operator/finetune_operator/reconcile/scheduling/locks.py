"""Which passes must not overlap, because each decides by what the others have written."""

from collections.abc import Mapping

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.inferencedeployment import InferenceDeployment

LockName = tuple[str, ...]
"""The thing that a pass has to be alone with."""


def line_lock(namespace: str, model: str) -> LockName:
    """Of a Checkpoint: a line's Checkpoints are promoted one by one.

    Two at once would both count as judged against the champion that only the first of them replaces.
    """
    return ("model line", namespace, model)


def rollout_lock(endpoint: InferenceDeployment, profiles: Mapping[str, ComputeProfile]) -> LockName | None:
    """Of an endpoint: those whose profile limits rollouts are counted one by one."""
    named = endpoint.spec.compute.profile
    if named is None:
        own = [profile for profile in profiles.values() if profile.is_default]
    else:
        own = [profiles[named]] if named in profiles else []
    limiting = next((profile for profile in own if profile.spec.max_concurrent_rollouts is not None), None)
    return None if limiting is None else ("rollouts", limiting.name)
