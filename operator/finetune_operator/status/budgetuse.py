# SPDX-License-Identifier: Apache-2.0
"""Share of a ComputeProfile's budget that each namespace has used, read from the profile's manifest."""

from finetune_operator.plan import Manifest


def shares_used(profile: Manifest) -> dict[str, float]:
    """By namespace, the share that is used in the current period: 1 or more if it is exhausted.

    Empty without a budget. Namespaces that have used nothing are absent.
    """
    budget = (profile.get("spec") or {}).get("budget") or {}
    usage = ((profile.get("status") or {}).get("budget") or {}).get("usage", ())
    if "costPerNamespace" in budget:
        return {each["namespace"]: each.get("cost", 0.0) / budget["costPerNamespace"] for each in usage}
    if "deviceHoursPerNamespace" in budget:
        # Divided as in `DeviceBudget.used`, so that both agree when a budget is exhausted.
        hours = budget["deviceHoursPerNamespace"]
        return {each["namespace"]: each["deviceSeconds"] / 3600 / hours for each in usage}
    return {}


def exhausted(profile: Manifest) -> frozenset[str]:
    """The namespaces that have used their budget."""
    return frozenset(namespace for namespace, share in shares_used(profile).items() if share >= 1)
