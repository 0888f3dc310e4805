# SPDX-License-Identifier: Apache-2.0
"""Routing of an endpoint's requests to its revisions, by its Service or by an HTTPRoute.

No other module knows how requests are routed. The objects that route requests decide which revision serves;
the status only repeats it. The HTTPRoute has exact weights and names a Service per revision. The Service of
the endpoint then selects the stable revision, for clients in the cluster. While a gateway does not accept the
route, the endpoint is not Ready, and a later pass reads the route again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from finetune_operator.api.endpoint_access import EndpointGateway
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import OPERATOR, REVISION, RUN
from finetune_operator.api.meta import Condition
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import (
    DEPLOYMENT,
    HTTP_ROUTE,
    SERVICE,
    controller_uid,
    find_wholly_applied_fields,
)
from finetune_operator.manifests.endpoint import (
    build_http_route,
    build_revision_service,
    build_service,
    has_only_defaults_added,
)
from finetune_operator.manifests.labels import WEIGHTS
from finetune_operator.observe.deployments import EndpointHealth
from finetune_operator.observe.route_status import is_stale, route_health
from finetune_operator.plan import Apply, Create, Delete, Manifest
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, Done, PassOutcome, Working
from finetune_operator.status.conditions import find_condition
from finetune_operator.status.reasons import ConditionType, Reason

ALL: Final = 100
"""Percent of the requests of an endpoint."""


class Writes(NamedTuple):
    """Writes that change the routing."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


class Traffic(Protocol):
    """Routes the requests of one endpoint to its revisions."""

    def weights(self) -> Mapping[str, int]:
        """Percent of the requests by revision, without zeros; empty if no revision gets requests."""

    def route(self, weights: Mapping[str, int]) -> Writes:
        """Writes that give each revision its percent of the requests; none if it has it already.

        Raises:
            ValueError: the requests cannot be split in this way.
        """

    def is_settled(self, weights: Mapping[str, int]) -> bool:
        """Whether the requests are routed so, and no other revision can get one any more.

        A pass must not delete a revision before.
        """

    def health(self, weights: Mapping[str, int]) -> EndpointHealth | None:
        """Whether what routes the requests has accepted these weights; None if nothing has to."""


@dataclass(frozen=True, slots=True)
class ServiceTraffic:
    """Routes requests by the selector of the Service.

    The Service selects one revision, or, to split requests, all pods of the endpoint. Then an annotation
    names the revisions and their weights, and their replicas must be in this proportion.
    """

    endpoint: InferenceDeployment
    snapshot: Snapshot

    def weights(self) -> Mapping[str, int]:
        """The weights in the annotation, or all requests for the selected revision.

        If the Service does not exist or selects no existing revision, this is the revision that served
        before, so a deleted or edited Service, or a deleted revision of several, does not stop it.
        """
        deployments, serving = self.snapshot.children[DEPLOYMENT], self._selected
        split = {name: weight for name, weight in self._split.items() if name in deployments}
        if len(split) > 1 and sum(split.values()) == ALL:
            return split
        if serving not in deployments and self.endpoint.status.revision in deployments:
            serving = self.endpoint.status.revision
        return {serving: ALL} if serving else {}

    def route(self, weights: Mapping[str, int]) -> Writes:
        if sum(weights.values()) != ALL:
            raise ValueError(f"the weights of the revisions are not {ALL} together: {dict(weights)}")
        is_split = len(weights) > 1
        if (self._split if is_split else {self._selected: ALL}) == weights:
            return Writes()
        uid = self._service["metadata"]["uid"] if self._service is not None else None
        selector = {} if is_split else {REVISION: next(iter(weights))}
        service = build_service(self.endpoint, selector, uid=uid)
        if is_split:
            service["metadata"]["annotations"] = {WEIGHTS: json.dumps(dict(weights), sort_keys=True)}
        if uid is None:
            return Writes(create=(Create(service),))
        return Writes(apply=(Apply(service),))

    def is_settled(self, weights: Mapping[str, int]) -> bool:  # noqa: ARG002 - of the port
        """A deleted pod answers on until the nodes have observed the change of the Service."""
        return True

    def health(self, weights: Mapping[str, int]) -> None:
        """Nothing has to accept a Service."""

    @property
    def _service(self) -> Manifest | None:
        return self.snapshot.children[SERVICE].get(self.endpoint.name)

    @property
    def _split(self) -> dict[str, int]:
        """The weights in the annotation of a Service that selects all pods of the endpoint, else none."""
        service = self._service or {"metadata": {}, "spec": {}}
        written = (service["metadata"].get("annotations") or {}).get(WEIGHTS)
        if written is None or service["spec"].get("selector") != {RUN: self.endpoint.uid}:
            return {}
        try:
            weights = json.loads(written)
        except ValueError:
            return {}
        return weights if _is_valid(weights) else {}

    @property
    def _selected(self) -> str:
        """The revision that the Service selects; empty if there is none, or if its selector was edited."""
        selector = (self._service or {"spec": {}})["spec"].get("selector", {})
        name: str = selector.get(REVISION, "")
        return name if selector == {RUN: self.endpoint.uid, REVISION: name} else ""


def _is_valid(weights: object) -> bool:
    values = tuple(weights.values()) if isinstance(weights, dict) else ()
    return all(isinstance(each, int) and each >= 0 for each in values) and sum(values) == ALL


def main_revision(weights: Mapping[str, int], recorded: str = "") -> str:
    """The recorded revision if it gets requests, else the one that gets most; empty if there is none."""
    if recorded in weights:
        return recorded
    return max(weights, key=lambda name: weights[name], default="")


def pod_selector(weights: Mapping[str, int]) -> str:
    """Label selector, as text, of the pods that serve; empty if none do."""
    if len(weights) > 1:
        return f"{REVISION} in ({','.join(sorted(weights))})"
    return "".join(f"{REVISION}={name}" for name in weights)


def traffic_of(endpoint: InferenceDeployment, snapshot: Snapshot) -> Traffic:
    """The routing of an endpoint."""
    service = ServiceTraffic(endpoint, snapshot)
    if endpoint.spec.traffic is not None:
        return GatewayTraffic(service, endpoint.spec.traffic.gateway)
    return FormerGatewayTraffic(service) if revision_services(snapshot) else service


def route_needs(endpoint: InferenceDeployment, snapshot: Snapshot) -> Needs:
    """The HTTPRoute, if the endpoint has one or had one."""
    if endpoint.spec.traffic is None and not revision_services(snapshot):
        return NOTHING
    return {HTTP_ROUTE: frozenset({endpoint.name})}


def revision_services(snapshot: Snapshot) -> dict[str, Manifest]:
    """The Services of single revisions, by revision."""
    services = snapshot.children[SERVICE].values()
    named = ((each["metadata"].get("labels", {}).get(REVISION), each) for each in services)
    return {revision: service for revision, service in named if revision is not None}


def own_route(endpoint: InferenceDeployment, snapshot: Snapshot) -> Manifest | None:
    """The endpoint's HTTPRoute; None if there is none, if it is of another owner, or cannot be read."""
    found = snapshot.find(HTTP_ROUTE, endpoint.name)
    is_own = found is not None and not is_refusal(found) and controller_uid(found) == endpoint.uid
    return found if is_own else None


@dataclass(frozen=True, slots=True)
class GatewayTraffic:
    """Routes requests by an HTTPRoute. Without the Gateway API, the Service routes them."""

    service: ServiceTraffic
    gateway: EndpointGateway

    def weights(self) -> Mapping[str, int]:
        """The weights of the route, or what the Service selects if the route does not have them."""
        deployments = self.snapshot.children[DEPLOYMENT]
        routed = {name: weight for name, weight in self._routed.items() if weight and name in deployments}
        return routed if sum(routed.values()) == ALL else self.service.weights()

    def route(self, weights: Mapping[str, int]) -> Writes:
        if sum(weights.values()) != ALL:
            raise ValueError(f"the weights of the revisions are not {ALL} together: {dict(weights)}")
        writes = self.service.route({self._main(weights): ALL})
        if self._refusal is not None:
            return writes
        services, deployments = revision_services(self.snapshot), self.snapshot.children[DEPLOYMENT]
        needed = {*weights, *deployments}
        missing = sorted(needed - services.keys())
        creates = (Create(build_revision_service(self.endpoint, name)) for name in missing)
        applies = () if self._has(weights) else (Apply(self._build(weights)),)
        unused = [service for name, service in services.items() if name not in needed]
        return Writes(
            (*creates, *writes.create),
            (*applies, *writes.apply),
            tuple(Delete(service, "Background") for service in unused) if self.is_settled(weights) else (),
        )

    def is_settled(self, weights: Mapping[str, int]) -> bool:
        if self._refusal is not None:
            # A route that may not be read can exist; one of a type that does not exist cannot.
            is_absent = self._refusal["code"] == HTTPStatus.NOT_FOUND or not revision_services(self.snapshot)
            return is_absent and self.service.weights() == weights
        return self._route is not None and self._has(weights) and not is_stale(self._route)

    def health(self, weights: Mapping[str, int]) -> EndpointHealth:
        if self._refusal is not None:
            return _unreadable(self._refusal)
        if self._route is None or not self._has(weights):
            return EndpointHealth("Unknown", Reason.ROUTE_PENDING, "the HTTPRoute is being written")
        return route_health(self._route)

    @property
    def endpoint(self) -> InferenceDeployment:
        return self.service.endpoint

    @property
    def snapshot(self) -> Snapshot:
        return self.service.snapshot

    @property
    def _refusal(self) -> Manifest | None:
        found = self.snapshot.find(HTTP_ROUTE, self.endpoint.name)
        return found if is_refusal(found) else None

    @property
    def _route(self) -> Manifest | None:
        return own_route(self.endpoint, self.snapshot)

    @property
    def _routed(self) -> dict[str, int]:
        """Weights by Service in the last rule of the route, which is the one without a header."""
        rules = self._route["spec"].get("rules", ()) if self._route is not None else ()
        backends = rules[-1].get("backendRefs", ()) if rules else ()
        return {each["name"]: each.get("weight", 1) for each in backends}

    def _has(self, weights: Mapping[str, int]) -> bool:
        """Whether the route is as it would be written for these weights."""
        if self._route is None:
            return False
        read, wanted = self._route["spec"], self._build(weights)["spec"]
        own = find_wholly_applied_fields(self._route, OPERATOR)
        # Additions of others, such as a filter, do not count as written, also if they name the operator as
        # manager. Defaults of a newer Gateway API do.
        return all(
            read.get(field) == value or (field in own and has_only_defaults_added(read.get(field), value))
            for field, value in wanted.items()
        )

    def _build(self, weights: Mapping[str, int]) -> Manifest:
        main = self._main(weights)
        uid = self._route["metadata"]["uid"] if self._route is not None else None
        ordered = {name: weights[name] for name in sorted(weights, key=lambda name: (name != main, name))}
        pinned = [name for name in ordered if name != main]
        return build_http_route(self.endpoint, self.gateway, ordered, pinned, uid)

    def _main(self, weights: Mapping[str, int]) -> str:
        return main_revision(weights, self.endpoint.status.revision)


@dataclass(frozen=True, slots=True)
class FormerGatewayTraffic:
    """Routes requests by the Service, and removes the route, then the Services that it named.

    While the operator has no right to the route, the route may exist and be used, so all revisions and their
    Services are kept.
    """

    service: ServiceTraffic

    def weights(self) -> Mapping[str, int]:
        return self.service.weights()

    def route(self, weights: Mapping[str, int]) -> Writes:
        writes = self.service.route(weights)
        if self._is_hidden:
            return writes
        route = own_route(self.service.endpoint, self.service.snapshot)
        former = [route] if route is not None else revision_services(self.service.snapshot).values()
        return writes._replace(delete=tuple(Delete(each, "Background") for each in former))

    def is_settled(self, weights: Mapping[str, int]) -> bool:  # noqa: ARG002 - of the port
        return not self._is_hidden and own_route(self.service.endpoint, self.service.snapshot) is None

    def health(self, weights: Mapping[str, int]) -> EndpointHealth | None:  # noqa: ARG002 - of the port
        if not self._is_hidden:
            return None
        endpoint = self.service.endpoint
        return EndpointHealth(
            "False",
            Reason.FORBIDDEN,
            f"the operator may not delete HTTPRoute {endpoint.name}, which spec.traffic does not request any"
            " more: set gatewayAPI.enabled in the operator's chart until it is deleted, because gateways may"
            f" use it. Or delete it, and then the Services with the labels {RUN}={endpoint.uid}"
            f" and {REVISION}, for which the operator keeps all revisions",
        )

    @property
    def _is_hidden(self) -> bool:
        found = self.service.snapshot.find(HTTP_ROUTE, self.service.endpoint.name)
        return found is not None and is_refusal(found) and found["code"] != HTTPStatus.NOT_FOUND


def _unreadable(refusal: Manifest) -> EndpointHealth:
    if refusal["code"] == HTTPStatus.NOT_FOUND:
        return EndpointHealth(
            "False",
            Reason.GATEWAY_API_NOT_INSTALLED,
            "the cluster does not have the Gateway API (HTTPRoute of gateway.networking.k8s.io/v1): install"
            " it, or remove spec.traffic; until then the Service routes all requests to one revision",
        )
    return EndpointHealth(
        "False",
        Reason.FORBIDDEN,
        f"the operator cannot read the HTTPRoute: {refusal['message']}: set gatewayAPI.enabled in the"
        " operator's chart",
    )


FIRST_RECHECK_SECONDS: Final = 1.0
RECHECK_SECONDS: Final = 30.0
"""Bounds of the time between two reads of a route, which is not watched.

While a gateway has not accepted the route, the time is a quarter of the time waited so far.
"""


def require_routing(halt: PassOutcome, routing: EndpointHealth | None) -> PassOutcome:
    """The end of the pass: an endpoint whose gateways do not route to it is not Ready."""
    if routing is None or routing.status == "True" or not isinstance(halt, Done):
        return halt
    if routing.status == "False":
        return Blocked(routing.reason, routing.message, halt.requeue_after)
    return Working(routing.reason, routing.message, halt.requeue_after)


def recheck_seconds(conditions: tuple[Condition, ...], now: datetime) -> float | None:
    """Seconds until the route must be read again; None if there is none."""
    routing = find_condition(conditions, ConditionType.ROUTE_ACCEPTED)
    if routing is None:
        return None
    waited = (now - routing.last_transition_time).total_seconds()
    is_accepted = routing.status == "True"
    return RECHECK_SECONDS if is_accepted else min(max(waited / 4, FIRST_RECHECK_SECONDS), RECHECK_SECONDS)
