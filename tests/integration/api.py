# SPDX-License-Identifier: Apache-2.0
"""Requests of a user to the API server."""

import json
import ssl
from pathlib import Path
from typing import Any

import httpx
from kubernetes import client, config

Object = dict[str, Any]

HISTORY_SECONDS = 2
"""Time for the events of the past in a watch."""

STRICT = "fieldValidation=Strict"

GROUP = "/apis/finetune.dev/v1alpha1"
PLURALS = {
    "FineTuneJob": "finetunejobs",
    "Dataset": "datasets",
    "DatasetVersion": "datasetversions",
    "Checkpoint": "checkpoints",
    "Evaluation": "evaluations",
    "FineTuneSchedule": "finetuneschedules",
    "FineTuneSweep": "finetunesweeps",
    "InferenceDeployment": "inferencedeployments",
    "ComputeProfile": "computeprofiles",
}


def path_of(kind: str, namespace: str, name: str = "") -> str:
    """Path of an object or collection; without a namespace, the collection of all namespaces."""
    built_in = {
        "Job": "/apis/batch/v1/namespaces/{}/jobs",
        "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
        "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
        "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
        "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        "Lease": "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
        "HTTPRoute": "/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes",
        "Kustomization": "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{}/kustomizations",
        "GitRepository": "/apis/source.toolkit.fluxcd.io/v1/namespaces/{}/gitrepositories",
        "OCIRepository": "/apis/source.toolkit.fluxcd.io/v1/namespaces/{}/ocirepositories",
        "HelmRelease": "/apis/helm.toolkit.fluxcd.io/v2/namespaces/{}/helmreleases",
        "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices",
    }
    if kind == "ComputeProfile":
        collection = f"{GROUP}/computeprofiles"
    elif kind in PLURALS:
        collection = f"{GROUP}/namespaces/{namespace}/{PLURALS[kind]}"
    elif kind in built_in:
        collection = built_in[kind].format(namespace)
    else:
        collection = f"/api/v1/namespaces/{namespace}/{kind.lower()}s"
    collection = collection.replace("/namespaces//", "/")
    return f"{collection}/{name}" if name else collection


class Refused(AssertionError):
    """The API server refused a request."""


class NotFound(Refused):
    """The object does not exist."""


class Api:
    """Requests of a kubeconfig's user. A refused request raises Refused.

    `create`, `apply` and `patch` are refused if they have a field that the API server does not know, as those
    of kubectl are; the API server would drop it from those of other clients.
    """

    def __init__(self, kubeconfig: Path) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(kubeconfig), client_configuration=configuration)
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        context.load_cert_chain(str(configuration.cert_file), configuration.key_file)
        self._http = httpx.Client(base_url=configuration.host, verify=context, timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: Object | None = None, **headers: str) -> httpx.Response:
        content = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return self._http.request(method, path, content=content, headers=sent)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object; None if it does not exist."""
        answer = self.request("GET", path_of(kind, namespace, name))
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        return _read(answer)

    def versions(self, kind: str, namespace: str, since: str) -> list[Object]:
        """Every version of these objects that was stored after a resource version, in order."""
        query = f"?watch=true&resourceVersion={since}&timeoutSeconds={HISTORY_SECONDS}"
        answer = self.request("GET", path_of(kind, namespace) + query)
        events = [json.loads(line) for line in answer.text.splitlines()]
        assert all(event["type"] != "ERROR" for event in events), events
        return [event["object"] for event in events if event["type"] != "DELETED"]

    def list(self, kind: str, namespace: str) -> list[Object]:
        items: list[Object] = _read(self.request("GET", path_of(kind, namespace)))["items"]
        return items

    def resource_version(self, kind: str, namespace: str) -> str | None:
        """Resource version of the present state, for `versions`; None while a new kind's storage starts."""
        answer = self.request("GET", path_of(kind, namespace))
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            return None
        version: str = _read(answer)["metadata"]["resourceVersion"]
        return version

    def create(self, manifest: Object) -> Object:
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata.get("namespace", ""))
        return _read(self.request("POST", f"{path}?{STRICT}", manifest))

    def apply(self, manifest: Object) -> Object:
        """Server-side apply, as `kubectl apply --server-side` sends it."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        query = f"?fieldManager=user&force=true&{STRICT}"
        return _read(
            self.request("PATCH", path + query, manifest, Content_Type="application/apply-patch+yaml")
        )

    def patch(self, kind: str, namespace: str, name: str, body: Object, subresource: str = "") -> Object:
        """JSON merge patch."""
        path = path_of(kind, namespace, name) + (f"/{subresource}" if subresource else "") + f"?{STRICT}"
        return _read(self.request("PATCH", path, body, Content_Type="application/merge-patch+json"))

    def delete(self, kind: str, namespace: str, name: str, propagation: str = "Background") -> None:
        path = f"{path_of(kind, namespace, name)}?propagationPolicy={propagation}"
        _read(self.request("DELETE", path))


def _read(answer: httpx.Response) -> Object:
    if answer.is_error:
        refusal = NotFound if answer.status_code == httpx.codes.NOT_FOUND else Refused
        raise refusal(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    read: Object = answer.json()
    return read
