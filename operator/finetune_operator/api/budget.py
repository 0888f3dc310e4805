# SPDX-License-Identifier: Apache-2.0
"""Budget of a ComputeProfile, and what the namespaces have used of it."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model, Name

BudgetPeriod = Literal["Day", "Week", "Month"]
MAX_BUDGET_NAMESPACES: Final = 256


class BudgetUsage(Model):
    """What one namespace has used in the current period."""

    namespace: Annotated[Name, Field(description="Namespace of the pods.")]
    device_seconds: Annotated[
        int, Field(ge=0, description="Devices of the namespace's pods, multiplied by the seconds they ran.")
    ]
    cost: Annotated[
        float | None,
        Field(
            ge=0,
            description="Cost of these device seconds, each at the price of the time at which it was"
            " counted. Absent: the profile has no cost.pricePerDeviceHour.",
        ),
    ] = None
    counted_until: Annotated[
        datetime, Field(description="Time up to which the pods of the namespace are counted.")
    ]


class BudgetStatus(Model):
    """Use of the budget in the current period."""

    period: Annotated[BudgetPeriod, Field(description="Period that is counted.")]
    since: Annotated[
        datetime,
        Field(
            description="Start of the count: the start of the period, or the time when the budget was set."
        ),
    ]
    resets_at: Annotated[datetime, Field(description="Time at which the count begins again from 0.")]
    usage: Annotated[
        tuple[BudgetUsage, ...],
        Field(
            max_length=MAX_BUDGET_NAMESPACES,
            json_schema_extra={"x-list-map-keys": ["namespace"]},
            description="Namespaces that have used devices. Limit: the 256 namespaces with the most usage.",
        ),
    ] = ()

    def of(self, namespace: str) -> BudgetUsage | None:
        """What the namespace has used; None before its first device second."""
        return next((each for each in self.usage if each.namespace == namespace), None)


class DeviceBudget(Model):
    """Limit of device use per namespace and period."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.deviceHoursPerNamespace) != has(self.costPerNamespace)",
            "cost.budget needs exactly one of deviceHoursPerNamespace and costPerNamespace",
        ),
    )

    period: Annotated[
        BudgetPeriod,
        Field(
            description="Period after which the count begins again. In UTC; a week begins on Monday, a month"
            " on its first day."
        ),
    ]
    device_hours_per_namespace: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000000000,
            description="Device hours that each namespace may use per period: devices of its pods, multiplied"
            " by the hours that they run. Pods of runs, Evaluations and endpoints count. Default: the budget"
            " is costPerNamespace.",
        ),
    ] = None
    cost_per_namespace: Annotated[
        float | None,
        Field(
            gt=0,
            le=1000000000,
            description="Cost that each namespace may cause per period, at cost.pricePerDeviceHour and in the"
            " profile's currency. Default: the budget is deviceHoursPerNamespace.",
        ),
    ] = None

    @property
    def limit(self) -> float:
        """Device hours, or cost."""
        return self.cost_per_namespace or self.device_hours_per_namespace or float("inf")

    def used(self, usage: BudgetUsage) -> float:
        """The usage in the unit of `limit`."""
        if self.cost_per_namespace is not None:
            return usage.cost or 0.0
        return usage.device_seconds / 3600

    def per_second(self, devices: int, price_per_device_hour: float | None) -> float:
        """Increase of `used` per second while this number of devices runs."""
        hours = devices / 3600
        return hours if self.cost_per_namespace is None else hours * (price_per_device_hour or 0.0)


ProfileBudget = Annotated[
    DeviceBudget | None,
    Field(
        description="What each namespace may use of the profile's devices per period. If it is used up,"
        " further stages with devices wait for the next period; running pods are never stopped, and endpoints"
        " serve. Each running Job of the namespace, and each that is younger than 1 h, reserves 1 h per"
        " device. A stage also waits if these reservations use up the rest of the budget. status.budget has"
        " the usage of each namespace; all users who may list profiles can read it. Default: no budget."
    ),
]
ProfileBudgetStatus = Annotated[
    BudgetStatus | None, Field(description="Use of spec.cost.budget. Absent: the profile has no budget.")
]
