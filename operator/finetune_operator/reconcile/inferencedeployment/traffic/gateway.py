# SPDX-License-Identifier: Apache-2.0
"""Routing of an endpoint's requests by an HTTPRoute, with exact weights.

The route names a Service per revision. The Service of the endpoint selects the stable revision, for clients
in the cluster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from finetune_operator.api.endpoint_access import EndpointGateway
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.errors import is_refusal
from finetune_operator.engine.resources import DEPLOYMENT, HTTP_ROUTE, SERVICE, applied_whole, controller_uid
from finetune_operator.manifests.endpoint import (
    build_http_route,
    build_revision_service,
    has_only_defaults_added,
)
from finetune_operator.manifests.labels import OPERATOR, REVISION, RUN
from finetune_operator.observe.endpoint_health import EndpointHealth, is_stale, route_health
from finetune_operator.plan import Apply, Create, Delete, Manifest
from finetune_operator.reconcile.inferencedeployment.traffic.routing import (
    ALL,
    ServiceTraffic,
    Traffic,
    Writes,
    main_revision,
)
from finetune_operator.reconcile.inputs.secondaries import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.status.reasons import Reason


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
        own = applied_whole(self._route, OPERATOR)
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
