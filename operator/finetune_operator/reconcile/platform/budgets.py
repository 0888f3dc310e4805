# SPDX-License-Identifier: Apache-2.0
"""Whether a namespace may start another stage with devices of a ComputeProfile that has a budget."""

from datetime import datetime
from typing import Final

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.reconcile.steps import Working
from finetune_operator.stagetable import STAGES
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import Stage

PERIODS: Final = {"Day": "today", "Week": "this week", "Month": "this month"}
RECHECK_SECONDS: Final = 3600.0
"""Max seconds between two checks. A raised budget and a reset wake the object earlier."""


def check_budget(profile: ComputeProfile, stage: Stage, namespace: str, now: datetime) -> Working | None:
    """Before a Job is created: wait if the stage uses devices and the namespace has used its budget.

    Jobs that exist are never affected, so a namespace can exceed its budget by what they use.
    """
    budget, status = profile.spec.budget, profile.status.budget
    if not STAGES[stage].uses_devices or budget is None or status is None or now >= status.resets_at:
        return None
    usage = status.of(namespace)
    if usage is None or budget.used(usage) < budget.limit:
        return None
    # The usage, which grows, is in the profile's status: a waiting object writes its status once.
    unit = (profile.spec.currency or "of cost") if budget.cost_per_namespace is not None else "device hours"
    return Working(
        Reason.BUDGET_EXHAUSTED,
        f"namespace {namespace} has used its budget of ComputeProfile {profile.name}:"
        f" {_figure(budget.limit)} {unit} {PERIODS.get(budget.period, '')}."
        f" The {stage} stage starts after the reset at {status.resets_at:%Y-%m-%dT%H:%M:%SZ}. To start it"
        " earlier, ask the platform team to raise the profile's spec.budget, or use another profile in a new"
        " object",
        min(RECHECK_SECONDS, (status.resets_at - now).total_seconds() + 1),
    )


def _figure(amount: float) -> str:
    return f"{amount:.3g}" if amount < 10 else f"{amount:.1f}".removesuffix(".0")
