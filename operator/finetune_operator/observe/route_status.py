# SPDX-License-Identifier: Apache-2.0
"""Acceptance of the HTTPRoute of an endpoint: the status that the controllers of its gateways write."""

from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

from finetune_operator.observe.deployments import EndpointHealth
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import Reason

CONDITIONS: Final = ("Accepted", "ResolvedRefs", "Programmed")
"""Conditions of the Gateway API that must not be False. A route has the last one only with some gateways."""


class Parent(NamedTuple):
    """Gateway, or listener of one, as a ParentReference names it."""

    namespace: str
    name: str
    listener: str | None
    port: int | None

    def __str__(self) -> str:
        listener = f" (listener {self.listener})" if self.listener is not None else ""
        return f"Gateway {self.namespace}/{self.name}{listener}"


class ParentStatus(NamedTuple):
    """Status of the route at one gateway, by one controller."""

    parent: Parent
    controller: str
    conditions: tuple[Manifest, ...]

    def is_stale(self, generation: int) -> bool:
        """Whether the controller has not observed this generation of the route."""
        observed = [each.get("observedGeneration", generation) for each in self.conditions]
        return min(observed, default=0) < generation

    @property
    def refused(self) -> tuple[Manifest, ...]:
        """The conditions that must not be False and are."""
        return tuple(
            each for each in self.conditions if each["type"] in CONDITIONS and each["status"] == "False"
        )


def is_stale(route: Manifest) -> bool:
    """Whether a gateway may still use an earlier generation of the route.

    A gateway that has never reported on the route uses none of them.
    """
    wanted, generation = set(_parents(route)), _generation(route)
    return any(each.is_stale(generation) for each in _statuses(route) if each.parent in wanted)


def route_health(route: Manifest) -> EndpointHealth:
    """Whether all gateways of the route have accepted its present generation."""
    wanted, statuses = tuple(_parents(route)), tuple(_statuses(route))
    problems = [problem for each in wanted if (problem := _problem(route, each, statuses)) is not None]
    if problems:
        worst = next((each for each in problems if each.status == "False"), problems[0])
        return worst._replace(message="; ".join(each.message for each in problems))
    foreign = "".join(
        f"; {each.parent}, which spec.traffic does not name, still has a status of this route by controller"
        f" {each.controller}"
        for each in statuses
        if each.parent not in wanted
    )
    names = " and ".join(str(each) for each in wanted)
    return EndpointHealth("True", Reason.ROUTE_ACCEPTED, f"accepted by {names}{foreign}")


def _problem(route: Manifest, parent: Parent, statuses: tuple[ParentStatus, ...]) -> EndpointHealth | None:
    """The reason that one gateway does not route as the route says; None if it does."""
    generation = _generation(route)
    own = [each for each in statuses if each.parent == parent]
    if not own:
        return EndpointHealth(
            "Unknown",
            Reason.ROUTE_PENDING,
            f"{parent} has not answered: it must exist, with a class whose controller runs, and its listeners"
            " must allow routes from this namespace",
        )
    controllers = sorted({each.controller for each in own})
    if len(controllers) > 1:
        return EndpointHealth(
            "False",
            Reason.FOREIGN_ROUTE_STATUS,
            f"controllers {' and '.join(controllers)} both report on {parent}: remove the status of the one"
            " that does not implement its class",
        )
    status = ParentStatus(parent, controllers[0], tuple(chain.from_iterable(each.conditions for each in own)))
    if status.is_stale(generation):
        return EndpointHealth(
            "Unknown",
            Reason.ROUTE_PENDING,
            f"{parent} has not taken generation {generation} of the HTTPRoute yet: controller"
            f" {status.controller} must be running",
        )
    refused = "; ".join(
        f"{each['type']}=False, {each.get('reason', '')}: {each.get('message', '')}"
        for each in status.refused
    )
    if refused:
        return EndpointHealth(
            "False", Reason.ROUTE_NOT_ACCEPTED, f"{parent} does not accept the HTTPRoute: {refused}"
        )
    if not any(each["type"] == "Accepted" and each["status"] == "True" for each in status.conditions):
        return EndpointHealth(
            "Unknown", Reason.ROUTE_PENDING, f"{parent} has not decided on the HTTPRoute yet"
        )
    return None


def _generation(route: Manifest) -> int:
    generation: int = route["metadata"].get("generation", 0)
    return generation


def _parents(route: Manifest) -> Iterator[Parent]:
    return (_parent(route, reference) for reference in route["spec"].get("parentRefs", ()))


def _parent(route: Manifest, reference: dict[str, Any]) -> Parent:
    namespace = reference.get("namespace") or route["metadata"]["namespace"]
    return Parent(namespace, reference["name"], reference.get("sectionName"), reference.get("port"))


def _statuses(route: Manifest) -> Iterator[ParentStatus]:
    for entry in route.get("status", {}).get("parents") or ():
        conditions = tuple(entry.get("conditions") or ())
        yield ParentStatus(_parent(route, entry["parentRef"]), entry["controllerName"], conditions)
