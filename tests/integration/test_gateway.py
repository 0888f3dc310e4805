# SPDX-License-Identifier: Apache-2.0
"""Endpoints behind a gateway, on a real API server without and with the Gateway API."""

from collections.abc import Iterator

import pytest
import yaml

from finetune_operator.manifests.endpoint import OPTIONAL_FIELDS
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.gateways import Gateway
from tests.integration.operators import Operators
from tests.integration.team import Team
from tests.integration.test_rollouts import pinned, set_strategy, states
from tests.waiting import eventually
from tools.cluster import ControlPlane, gateway_api

TRAFFIC: Object = {
    "gateway": {"parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": ["desk.example.com"]}
}


@pytest.fixture
def team(api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet) -> Team:
    """A team with two Checkpoints."""
    team = Team(api, namespace, operators.start().wait_active())
    for name in ("first", "second"):
        team.record(name)
    return team


@pytest.fixture
def gateway(api: Api, namespace: str, control_plane: ControlPlane) -> Iterator[Gateway]:
    """A gateway that accepts the routes of the namespace."""
    control_plane.kubectl.define(gateway_api.route_definition())
    started = Gateway(api, namespace)
    yield started
    started.close()


def serve(api: Api, namespace: str) -> None:
    """Create an endpoint behind a gateway that serves the first Checkpoint."""
    endpoint = manifests.inferencedeployment(namespace)
    endpoint["spec"] |= {"models": [pinned("first")], "traffic": TRAFFIC}
    api.create(endpoint)


def route_of(api: Api, namespace: str) -> Object:
    route = api.get("HTTPRoute", namespace, "support")
    assert route is not None
    return route


def weights(api: Api, namespace: str) -> dict[str, int]:
    backends = route_of(api, namespace)["spec"]["rules"][-1]["backendRefs"]
    return {each["name"]: each["weight"] for each in backends}


def test_without_the_gateway_api_a_condition_says_so_until_it_is_installed(
    api: Api, namespace: str, team: Team, control_plane: ControlPlane
) -> None:
    serve(api, namespace)
    message = team.until_reason("InferenceDeployment", "support", "RouteAccepted", "GatewayAPINotInstalled")
    assert "install it, or remove spec.traffic" in message
    eventually("the endpoint serves in the cluster", lambda: team.served() == {"routing": "first"})
    control_plane.kubectl.define(gateway_api.route_definition())
    team.until_reason("InferenceDeployment", "support", "RouteAccepted", "RoutePending")
    assert list(weights(api, namespace).values()) == [100]


def test_a_canary_has_the_weights_of_its_steps_and_the_old_revision_is_deleted_when_they_are_taken(
    api: Api, namespace: str, team: Team, gateway: Gateway
) -> None:
    serve(api, namespace)
    team.until_served(routing="first")
    old = team.endpoint()["status"]["revision"]
    assert team.endpoint()["status"]["url"] == "http://desk.example.com/v1"
    written = route_of(api, namespace)["metadata"]["generation"]
    strategy = {"type": "Canary", "canary": {"steps": [{"setWeight": 1}, {"pause": {"seconds": 3600}}]}}
    set_strategy(api, namespace, strategy)
    team.serve(pinned("second"))
    team.until_reason("InferenceDeployment", "support", "Reconciling", "Canary")
    (new,) = set(states(team)) - {old}
    eventually("one percent", lambda: weights(api, namespace) == {old: 99, new: 1})
    shown = {each["name"]: each.get("weight") for each in team.endpoint()["status"]["revisions"]}
    assert route_of(api, namespace)["metadata"]["generation"] == written + 1, "no other write"

    gateway.is_paused = True
    set_strategy(api, namespace, {"decision": {"revision": new, "verdict": "Promote"}})
    eventually("all requests", lambda: weights(api, namespace) == {new: 100}, 60)
    team.until_reason("InferenceDeployment", "support", "RouteAccepted", "RoutePending")
    assert api.get("Deployment", namespace, old) is not None
    assert api.get("Service", namespace, old) is not None
    gateway.is_paused = False
    team.until_served(routing="second")
    eventually("the old revision is deleted", lambda: api.get("Deployment", namespace, old) is None)
    eventually("its Service is deleted", lambda: api.get("Service", namespace, old) is None)
    assert shown[new] in {0, 1}


def test_a_route_of_another_owner_is_left_alone(
    api: Api, namespace: str, team: Team, gateway: Gateway
) -> None:
    foreign = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "support", "namespace": namespace},
        "spec": {"parentRefs": [{"name": "public"}]},
    }
    before = api.create(foreign)["spec"]
    serve(api, namespace)
    message = team.until_reason("InferenceDeployment", "support", "Reconciling", "NameConflict")
    assert "HTTPRoute support exists" in message
    assert route_of(api, namespace)["spec"] == before


def test_all_optional_fields_of_the_parts_of_a_route_are_known() -> None:
    (schema,) = (
        version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        for version in yaml.safe_load(gateway_api.route_definition().read_text())["spec"]["versions"]
        if version["name"] == "v1"
    )
    rule = schema["rules"]["items"]["properties"]
    match = rule["matches"]["items"]["properties"]
    places = (
        schema["parentRefs"]["items"],
        schema["rules"]["items"],
        rule["matches"]["items"],
        match["path"],
        match["headers"]["items"],
        rule["backendRefs"]["items"],
    )
    optional = {
        name
        for place in places
        for name, field in place["properties"].items()
        if "default" not in field and name not in place.get("required", ())
    }
    assert optional - {"backendRefs"} <= OPTIONAL_FIELDS


@pytest.fixture
def later_gateway_api(control_plane: ControlPlane) -> Iterator[None]:
    """A Gateway API whose rules and backends have a field more, with a default."""
    released = gateway_api.route_definition()
    definition = yaml.safe_load(released.read_text())
    for version in definition["spec"]["versions"]:
        rules = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]
        fields = rules["items"]["properties"]
        for item in (fields, fields["backendRefs"]["items"]["properties"]):
            item["later"] = {"type": "string", "default": "On"}
    control_plane.kubectl.define(yaml.safe_dump(definition))
    yield
    control_plane.kubectl.define(released)


def test_a_default_of_a_later_gateway_api_holds_up_no_rollout_and_a_filter_is_removed(
    api: Api, namespace: str, team: Team, gateway: Gateway, later_gateway_api: None
) -> None:
    serve(api, namespace)
    team.until_served(routing="first")
    (rule,) = route_of(api, namespace)["spec"]["rules"]
    assert (rule["later"], rule["backendRefs"][0]["later"]) == ("On", "On")
    team.serve(pinned("second"))
    team.until_served(routing="second")
    written = route_of(api, namespace)["spec"]["rules"]
    for change in ({"later": "Off"}, {"timeouts": {"request": "1s"}}):
        edited = [{**rule, **change} for rule in written]
        api.patch("HTTPRoute", namespace, "support", {"spec": {"rules": edited}})
        # An edit causes a pass at once.
        api.patch(
            "InferenceDeployment", namespace, "support", {"metadata": {"annotations": {"seen": str(change)}}}
        )
        eventually("the rules are put back", lambda: route_of(api, namespace)["spec"]["rules"] == written)


def test_the_route_goes_with_spec_traffic(api: Api, namespace: str, team: Team, gateway: Gateway) -> None:
    serve(api, namespace)
    team.until_served(routing="first")
    api.patch("InferenceDeployment", namespace, "support", {"spec": {"traffic": None}})
    eventually("the route is deleted", lambda: api.get("HTTPRoute", namespace, "support") is None)
    eventually(
        "only the endpoint's Service is left",
        lambda: [each["metadata"]["name"] for each in api.list("Service", namespace)] == ["support"],
    )
    team.until_served(routing="first")
