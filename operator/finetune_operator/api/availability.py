# SPDX-License-Identifier: Apache-2.0
"""Availability of an endpoint: its PodDisruptionBudget, and the spread of its replicas."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_operator.api.labels import LABEL_KEY
from finetune_operator.api.meta import CELRule, Model, pattern_advice


class TopologySpread(Model):
    """Spread of the replicas of a revision over nodes, zones or other groups of nodes."""

    topology_key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=LABEL_KEY,
            json_schema_extra=pattern_advice(
                LABEL_KEY, "topologyKey must be a label name, for example topology.kubernetes.io/zone"
            ),
            description="Node label whose values are the groups, such as kubernetes.io/hostname.",
        ),
    ]
    max_skew: Annotated[
        int,
        Field(ge=1, le=100, description="Max difference in replicas between two groups."),
    ] = 1
    when_unsatisfiable: Annotated[
        Literal["ScheduleAnyway", "DoNotSchedule"],
        Field(description="Whether a replica that would exceed maxSkew is scheduled anyway or waits."),
    ] = "ScheduleAnyway"


class Availability(Model):
    """Spread of the replicas, and how many of them evictions may remove at a time."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.maxUnavailable) || !has(self.disruptionBudget) || self.disruptionBudget != 'None'",
            "maxUnavailable has no effect with disruptionBudget: None, which creates no PodDisruptionBudget:"
            " remove one of them",
            "maxUnavailable",
        ),
    )

    disruption_budget: Annotated[
        Literal["Managed", "None"] | None,
        Field(
            description="Owner of the PodDisruptionBudget of the endpoint's pods. Managed: the operator"
            " creates one if the endpoint has several replicas or maxUnavailable is set. None: the operator"
            " creates none, and you may create your own. Evictions of a pod with two budgets fail. Default:"
            " Managed."
        ),
    ] = None
    max_unavailable: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="Max number of replicas that evictions, such as those of kubectl drain, may remove"
            " at a time, by a PodDisruptionBudget. 0 refuses every eviction of a ready replica, so a node"
            " with such a replica cannot be drained. Default: 1 if the endpoint has several replicas.",
        ),
    ] = None
    topology_spread: Annotated[
        tuple[TopologySpread, ...],
        Field(
            max_length=4,
            json_schema_extra={"x-list-map-keys": ["topologyKey"]},
            description="Spread constraints of the endpoint's pods. A change starts a new revision. Empty:"
            " the scheduler's defaults, which prefer to spread over nodes and zones.",
        ),
    ] = ()
