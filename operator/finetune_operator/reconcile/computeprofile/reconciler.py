# SPDX-License-Identifier: Apache-2.0
"""Report whether objects can use a ComputeProfile, and what they have used of its budget."""

from finetune_operator.api.compute_profile import BUILT_IN, ComputeProfile
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.plan import Plan
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Done, Failed, finish_pass
from finetune_operator.reconcile.platform.budgets import account
from finetune_operator.status.reasons import Reason


def reconcile(profile: ComputeProfile, snapshot: Snapshot) -> Plan:
    """Plan one pass over a ComputeProfile."""
    # Of a namespace whose objects are not all listed, a part of the use would be left out for good.
    uses = [use for use in snapshot.device_use(profile.name) if use.namespace not in snapshot.facts.unlisted]
    budget = account(profile, uses, snapshot.now)
    status = profile.status.model_copy(update={"budget": budget.status})
    result = finish_pass(profile, status, _state(profile, snapshot), snapshot.now)
    return Plan(status=result.manifest, events=result.events, requeue_after=budget.recheck_seconds)


def _state(profile: ComputeProfile, snapshot: Snapshot) -> Done | Failed:
    problems = find_unimplemented(profile.spec)
    if problems:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(problems))
    rivals = sorted(
        other.name for other in snapshot.profiles.values() if other.is_default and other.name != profile.name
    )
    if profile.is_default and rivals:
        message = (
            f"{', '.join(rivals)} and {profile.name} are all marked as the default profile:"
            " remove finetune.dev/is-default-profile from all but one"
        )
        return Failed(Reason.DEFAULT_PROFILE_CONFLICT, message)
    if profile.spec.serving.engine != BUILT_IN and profile.spec.images.engine is None:
        return Failed(
            Reason.INVALID_SPEC,
            f"serving.engine is {profile.spec.serving.engine}, but images.engine is not set: set it to an"
            f" image of vLLM, for example of vllm/vllm-openai by digest, or set serving.engine: {BUILT_IN}",
        )
    return Done(Reason.AVAILABLE, "FineTuneJobs and InferenceDeployments can use this profile")
