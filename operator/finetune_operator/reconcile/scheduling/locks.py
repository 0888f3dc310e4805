# SPDX-License-Identifier: Apache-2.0
"""Locks for passes that must not overlap, because each one depends on what the other ones write."""

from collections.abc import Mapping

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.inference_deployment import InferenceDeployment

LockName = tuple[str, ...]
"""Key of a lock that a pass holds."""


def line_lock(namespace: str, model_line: str) -> LockName:
    """The lock of a Checkpoint's pass: a line promotes its Checkpoints one by one.

    Two promotions at the same time would both compare with the champion that the first of them replaces.
    """
    return ("model line", namespace, model_line)


def budget_lock(namespace: str) -> LockName:
    """The lock of the pass of a run or an Evaluation that waits for a budget of its namespace.

    Each of them counts the devices of the Jobs that those before it have created.
    """
    return ("budget", namespace)


def rollout_lock(endpoint: InferenceDeployment, profiles: Mapping[str, ComputeProfile]) -> LockName | None:
    """The lock of an endpoint's pass: rollouts of a profile are counted one by one.

    Without a limit of the profile they are counted per namespace.
    """
    named = endpoint.spec.compute.profile
    if named is None:
        own = [profile for profile in profiles.values() if profile.is_default]
    else:
        own = [profiles[named]] if named in profiles else []
    if not own:
        return None
    limiting = next((profile for profile in own if profile.spec.limits.concurrent_rollouts is not None), None)
    if limiting is None:
        return ("rollouts", own[0].name, endpoint.namespace)
    return ("rollouts", limiting.name)
