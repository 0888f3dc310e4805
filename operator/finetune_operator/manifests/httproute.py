# SPDX-License-Identifier: Apache-2.0
"""The HTTPRoute of an endpoint, and the Services of its revisions, to which it routes."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from finetune_operator.api.endpoint_access import EndpointGateway, GatewayReference
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.resources import HTTP_ROUTE, SERVICE
from finetune_operator.manifests.jobs import child_metadata
from finetune_operator.manifests.labels import REVISION, child_labels
from finetune_operator.manifests.serving import SERVICE_PORT, build_service
from finetune_operator.plan import Manifest

REVISION_HEADER: Final = "x-finetune-revision"
"""Header of a request that only the revision with this name may answer."""
OPTIONAL_FIELDS: Final = frozenset(
    {
        "filters",
        "headers",
        "method",
        "name",
        "namespace",
        "port",
        "queryParams",
        "retry",
        "sectionName",
        "sessionPersistence",
        "timeouts",
    }
)
"""Fields of the parts of an HTTPRoute that have no default. A part that was written without them has none."""
API_PREFIX: Final = "/v1"
"""Path of the API. Other paths of the pods, such as those of metrics, are not routed."""


def build_revision_service(endpoint: InferenceDeployment, revision: str) -> Manifest:
    """The Service of one revision. Its name is that of the revision."""
    service = build_service(endpoint, {REVISION: revision})
    service["metadata"] |= {"name": revision, "labels": child_labels(endpoint, **{REVISION: revision})}
    return service


def build_http_route(
    endpoint: InferenceDeployment,
    gateway: EndpointGateway,
    weights: Mapping[str, int],
    pinned: Iterable[str],
    uid: str | None = None,
) -> Manifest:
    """The HTTPRoute.

    All fields that the API server sets by default are given, so that a read route equals it until a newer
    Gateway API has more of them.

    Args:
        endpoint: owner of the route.
        gateway: gateways and hostnames.
        weights: percent of the requests by revision.
        pinned: revisions that a request can choose by REVISION_HEADER.
        uid: uid of the existing route.
    """
    metadata = child_metadata(endpoint, endpoint.name)
    if uid is not None:
        metadata["uid"] = uid
    rules = [_rule({name: 1}, {REVISION_HEADER: name}) for name in pinned]
    spec: Manifest = {
        "parentRefs": [_parent(each) for each in gateway.parent_refs],
        "hostnames": list(gateway.hostnames),
    }
    return {
        "apiVersion": HTTP_ROUTE.api_version,
        "kind": HTTP_ROUTE.kind,
        "metadata": metadata,
        "spec": {**spec, "rules": [*rules, _rule(weights, {})]},
    }


def has_only_defaults_added(read: Any, written: Any) -> bool:
    """Whether a part of a route differs from the written one only by fields that may be defaults.

    These are fields that this release of the operator does not know, of a newer Gateway API.
    """
    if isinstance(written, dict):
        return (
            isinstance(read, dict)
            and not (read.keys() - written.keys()) & OPTIONAL_FIELDS
            and all(key in read and has_only_defaults_added(read[key], written[key]) for key in written)
        )
    if isinstance(written, list):
        return (
            isinstance(read, list)
            and len(read) == len(written)
            and all(map(has_only_defaults_added, read, written))
        )
    return bool(read == written)


def _parent(reference: GatewayReference) -> Manifest:
    return {"group": HTTP_ROUTE.api_version.partition("/")[0], "kind": "Gateway", **reference.to_dict()}


def _rule(weights: Mapping[str, int], headers: Mapping[str, str]) -> Manifest:
    match: Manifest = {"path": {"type": "PathPrefix", "value": API_PREFIX}}
    if headers:
        match["headers"] = [
            {"type": "Exact", "name": name, "value": value} for name, value in headers.items()
        ]
    backends = [
        {"group": "", "kind": SERVICE.kind, "name": name, "port": SERVICE_PORT, "weight": weight}
        for name, weight in weights.items()
    ]
    return {"matches": [match], "backendRefs": backends}
