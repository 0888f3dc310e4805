# SPDX-License-Identifier: Apache-2.0
"""Share of a ComputeProfile's budget that each namespace has used, read from the profile's manifest."""

from finetune_operator.api.compute_profile import BudgetStatus, DeviceBudget
from finetune_operator.plan import Manifest
from finetune_trainer.contract.base import lenient_validator


def read_used_shares(profile: Manifest) -> dict[str, float]:
    """By namespace, the share that is used in the current period: 1 or more if it is exhausted.

    Empty without a budget. Namespaces that have used nothing are absent.
    """
    spec = ((profile.get("spec") or {}).get("cost") or {}).get("budget")
    status = (profile.get("status") or {}).get("budget")
    if spec is None or status is None:
        return {}
    budget: DeviceBudget = lenient_validator(DeviceBudget).validate_python(spec)
    counted: BudgetStatus = lenient_validator(BudgetStatus).validate_python(status)
    return {each.namespace: budget.used(each) / budget.limit for each in counted.usage}


def find_exhausted(profile: Manifest) -> frozenset[str]:
    """The namespaces that have used their budget."""
    return frozenset(namespace for namespace, share in read_used_shares(profile).items() if share >= 1)


def is_counted(profile: Manifest) -> bool:
    """Whether the use of the profile has been counted once."""
    return (profile.get("status") or {}).get("budget") is not None
