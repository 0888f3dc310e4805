# SPDX-License-Identifier: Apache-2.0
"""Objects of the Kubernetes API: their types, URL paths and metadata."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from finetune_operator.plan import Manifest


@dataclass(frozen=True, slots=True)
class ResourceType:
    """Type of object, as the API server names it."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def discovery_path(self) -> str:
        """URL path of the document that lists the types of the API version."""
        return f"{'/apis' if '/' in self.api_version else '/api'}/{self.api_version}"

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """URL path of the collection or, with a name, of one object. No namespace: all namespaces."""
        scope = f"/namespaces/{quote(namespace)}" if self.namespaced and namespace else ""
        parts = [f"{self.discovery_path}{scope}/{self.plural}"]
        parts += [quote(part) for part in (name, subresource) if part]
        return "/".join(parts)


JOB: Final = ResourceType("batch/v1", "Job", "jobs")
POD: Final = ResourceType("v1", "Pod", "pods")
DEPLOYMENT: Final = ResourceType("apps/v1", "Deployment", "deployments")
SERVICE: Final = ResourceType("v1", "Service", "services")
NETWORK_POLICY: Final = ResourceType("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
POD_DISRUPTION_BUDGET: Final = ResourceType("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
NAMESPACE: Final = ResourceType("v1", "Namespace", "namespaces", namespaced=False)
SERVICE_ACCOUNT: Final = ResourceType("v1", "ServiceAccount", "serviceaccounts")
CLAIM: Final = ResourceType("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRET: Final = ResourceType("v1", "Secret", "secrets")
EVENT: Final = ResourceType("v1", "Event", "events")
LEASE: Final = ResourceType("coordination.k8s.io/v1", "Lease", "leases")
CLUSTER_ROLE_BINDING: Final = ResourceType(
    "rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False
)
ENDPOINT_SLICE: Final = ResourceType("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
TOKEN_REVIEW: Final = ResourceType(
    "authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False
)
SUBJECT_ACCESS_REVIEW: Final = ResourceType(
    "authorization.k8s.io/v1", "SubjectAccessReview", "subjectaccessreviews", namespaced=False
)
DEFINITION: Final = ResourceType(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
HTTP_ROUTE: Final = ResourceType("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
"""Of the Gateway API, which a cluster may not have."""
LOCAL_QUEUE: Final = ResourceType("kueue.x-k8s.io/v1beta2", "LocalQueue", "localqueues")
WORKLOAD: Final = ResourceType("kueue.x-k8s.io/v1beta2", "Workload", "workloads")
"""Both of Kueue, which a cluster may not have."""
PENDING_WORKLOADS: Final = ResourceType("visibility.kueue.x-k8s.io/v1beta2", "LocalQueue", "localqueues")
"""LocalQueues of Kueue's visibility API, which have only the subresource `pendingworkloads`."""

BUILT_IN: Final = (
    JOB, POD, DEPLOYMENT, SERVICE, NETWORK_POLICY, POD_DISRUPTION_BUDGET, NAMESPACE, SERVICE_ACCOUNT, CLAIM,
    SECRET, EVENT, LEASE, CLUSTER_ROLE_BINDING, ENDPOINT_SLICE, TOKEN_REVIEW, SUBJECT_ACCESS_REVIEW,
    DEFINITION, HTTP_ROUTE, LOCAL_QUEUE, WORKLOAD, PENDING_WORKLOADS,
)  # fmt: skip


class ResourceTypes(Mapping[tuple[str, str], ResourceType]):
    """Types that this process uses, by apiVersion and kind."""

    def __init__(self, custom: Iterable[ResourceType] = ()) -> None:
        self._types = {(each.api_version, each.kind): each for each in (*BUILT_IN, *custom)}

    def __getitem__(self, key: tuple[str, str]) -> ResourceType:
        return self._types[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._types)

    def __len__(self) -> int:
        return len(self._types)

    def of(self, manifest: Manifest) -> ResourceType:
        """The type of this object.

        Raises:
            KeyError: the type is not in the table; the message names it.
        """
        key = (manifest["apiVersion"], manifest["kind"])
        if key not in self._types:
            raise KeyError(f"{key[1]} of {key[0]} is not in the table of resource types: add it")
        return self._types[key]


MANAGER_FIELDS: Final = ("manager", "subresource")
"""Fields to keep of an entry of `managedFields`; the rest is mainly names of fields."""


def version(obj: Manifest) -> int:
    """The resource version as a number. Within a type, a greater one is newer."""
    return int(obj["metadata"]["resourceVersion"])


def controller(obj: Manifest) -> dict[str, Any]:
    """The owner reference to the object's controller, or an empty mapping."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference for reference in references if reference.get("controller")), {})


def controller_uid(obj: Manifest) -> str:
    """The uid of the object's controller, or an empty string."""
    uid: str = controller(obj).get("uid", "")
    return uid


def find_wholly_applied_fields(obj: Manifest, manager: str) -> frozenset[str]:
    """Names of the fields of the spec that the manager applied as a whole, and no other manager has changed.

    The API server owns no fields, so such a field differs from the applied one only by defaults.
    """
    fields: dict[str, Any] = {}
    for entry in obj["metadata"].get("managedFields") or ():
        if (entry["manager"], entry["operation"], entry.get("subresource", "")) == (manager, "Apply", ""):
            fields = entry.get("fieldsV1", {}).get("f:spec", {})
    return frozenset(name.removeprefix("f:") for name, parts in fields.items() if not parts)


def drop_field_names(obj: Manifest, *, keep_managers: bool) -> Manifest:
    """A copy of the object without `managedFields`, or with only the names of the managers."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "managedFields"}
    if keep_managers:
        entries = obj["metadata"].get("managedFields") or ()
        metadata["managedFields"] = [
            {key: entry[key] for key in MANAGER_FIELDS if key in entry} for entry in entries
        ]
    return {**obj, "metadata": metadata}
