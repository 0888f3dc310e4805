"""ComputeProfile: says whether the profile can be used as it stands."""

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.plan import Plan
from finetune_operator.reconcile.snapshot import Snapshot
from finetune_operator.status.conditions import enter, stalled, status_manifest
from finetune_operator.status.reasons import ConditionType, Reason
from finetune_operator.status.reserved import not_implemented


def reconcile(profile: ComputeProfile, snapshot: Snapshot) -> Plan:
    """Ready, or Stalled with what to change."""
    problems = not_implemented(profile.spec)
    if problems:
        return Plan(status=stalled(profile, Reason.NOT_IMPLEMENTED, "; ".join(problems), snapshot.now))
    rivals = sorted(
        other.name for other in snapshot.profiles.values() if other.is_default and other.name != profile.name
    )
    if profile.is_default and rivals:
        message = (
            f"{', '.join(rivals)} and {profile.name} are all marked as the default profile:"
            " remove finetune.dev/is-default-profile from all but one"
        )
        return Plan(status=stalled(profile, Reason.DEFAULT_PROFILE_CONFLICT, message, snapshot.now))
    generation = profile.metadata.generation
    conditions = enter(
        profile.status.conditions,
        ConditionType.READY,
        Reason.AVAILABLE,
        "FineTuneJobs and InferenceDeployments can use this profile",
        generation=generation,
        now=snapshot.now,
    )
    update = {"observed_generation": generation, "conditions": conditions}
    return Plan(status=status_manifest(profile.status.model_copy(update=update)))
