# SPDX-License-Identifier: Apache-2.0
"""kubectl and API requests with the same credentials, and failures in the user's words."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlencode

from kubernetes import client, config
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import SERVICE_CERT_FILENAME
from urllib3.exceptions import HTTPError, MaxRetryError, ProxyError

from finetune_client.backend import Object
from finetune_client.errors import OperationError, UnavailableError
from finetune_operator.api.crd import KINDS
from finetune_operator.api.meta import API_VERSION, GROUP

JSON: Final = "application/json"
APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
TABLE: Final = "application/json;as=Table;v=v1;g=meta.k8s.io"

PLURALS: Final[Mapping[str, str]] = {kind.name: kind.plural for kind in KINDS}
CLUSTER_SCOPED: Final = frozenset(kind.name for kind in KINDS if not kind.namespaced)
BUILT_IN: Final[Mapping[str, tuple[str, str]]] = {
    "ConfigMap": ("v1", "configmaps"),
    "Event": ("v1", "events"),
    "Job": ("batch/v1", "jobs"),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims"),
    "Pod": ("v1", "pods"),
    "Secret": ("v1", "secrets"),
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
}
"""API version and plural of kinds that are not ours."""

UNAVAILABLE: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Statuses of a server, or a load balancer before it, that may answer the same request a moment later."""
READ_VERBS: Final = frozenset({"get", "list", "watch"})
UNGRANTED: Final = frozenset({"computeprofiles", "finetunejobs/status"})
"""Resources that no role for people may change."""
CREATED_BY_OPERATOR: Final = frozenset({"checkpoints", "datasetversions"})
FORBIDDEN: Final = re.compile(r'User "(.+?)" cannot (\S+) resource "(.+?)"')


def role_with(verb: str, resource: str) -> str | None:
    """The smallest role of docs/tenants.md with this right in a namespace; None if no role has it."""
    if resource == "secrets":
        return "edit"
    if verb == "approve":
        return "finetune-operator-approver"
    if verb in READ_VERBS:
        return "view"
    if resource in UNGRANTED or (verb == "create" and resource in CREATED_BY_OPERATOR):
        return None
    return "edit"


class Access:
    """kubectl and API requests with the same credentials.

    Args:
        kubectl: name or path of the program.
        kubeconfig: file with clusters and credentials; None selects the user's, as kubectl does, and in a pod
            without one the pod's service account.
        context: context in that file; empty selects its current context.

    Attributes:
        server: URL of the API server.
        default_namespace: namespace of the context or pod.

    Raises:
        OperationError: no cluster is configured, or the file or the context is missing.
    """

    def __init__(self, kubectl: str, *, kubeconfig: Path | None = None, context: str = "") -> None:
        file = str(kubeconfig) if kubeconfig is not None else None
        options = {"kubeconfig": file, "context": context}
        self._kubectl = [kubectl, *(f"--{name}={value}" for name, value in options.items() if value)]
        self._api, self._context, self.default_namespace = _configured(file, context)
        self.server = str(self._api.configuration.host)

    def kubectl_command(self, *arguments: str) -> list[str]:
        """Command line of one kubectl call."""
        return [*self._kubectl, *arguments]

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with `text` as its input, and return its output.

        Raises:
            OperationError: it failed; the message contains kubectl's message.
        """
        return run_program("kubectl", self._kubectl, arguments, text)

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Object | None:
        """One request; its answer, or None if the object does not exist.

        Raises:
            OperationError: the API server is not reachable or refused the request.
        """
        response = self._send(method, path, query, body, content_type=content_type, accept=accept)
        data = self._body(response)
        if response.status == HTTPStatus.NOT_FOUND and not _is_status(data):
            raise self._unserved(path)
        if response.status == HTTPStatus.NOT_FOUND and method == "GET":
            return None
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(response.status, data)
        try:
            return cast("Object", json.loads(data))
        except ValueError as error:
            raise OperationError(
                f"{self._place} answered {path} with text that is not JSON. A proxy or a login page may have"
                f" answered in its place: {_excerpt(data)}",
                ["kubectl cluster-info: whether kubectl reaches it"],
            ) from error

    def stream(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[str]:
        """Lines of the answer to a GET request, as they arrive; none if the server has none.

        Raises:
            OperationError: the API server is not reachable or refuses the request, or the stream broke.
        """
        response = self._send("GET", path, query, accept="*/*")
        if response.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND):
            # The container has not started, or the pod was deleted.
            response.close()
            return
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(response.status, self._body(response))
        left = b""
        try:
            for chunk in response.stream(amt=None, decode_content=True):
                *lines, left = (left + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except HTTPError as error:
            raise UnavailableError(f"the connection to {self.server} broke: {error}") from error
        finally:
            response.close()
        if left:
            yield left.decode(errors="replace")

    def objects(
        self, kind: str, namespace: str, selector: str = "", fields: Mapping[str, str] | None = None
    ) -> list[Object]:
        """All objects of a kind in a namespace, read in pages.

        Args:
            kind: one of our kinds or of BUILT_IN.
            namespace: the namespace; ignored for kinds without one.
            selector: label selector.
            fields: values of fields that the objects must have, for kinds that support it.
        """
        query = {"limit": "500"}
        if selector:
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = ",".join(f"{name}={value}" for name, value in fields.items())
        found: list[Object] = []
        for page in self.pages(path(kind, namespace), query):
            found += page["items"]
        return found

    def pages(self, collection: str, query: Mapping[str, str], accept: str = JSON) -> Iterator[Object]:
        """Answers to a list request with a `limit`, until all objects have been read."""
        following: dict[str, str] = {}
        while True:
            page = self.request("GET", collection, {**query, **following}, accept=accept)
            if page is None:
                return
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return
            following = {"continue": token}

    def object(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object; None if it does not exist."""
        return self.request("GET", path(kind, namespace, name))

    def events(self, namespace: str) -> list[Object]:
        """Events of a namespace about objects of our kinds, not sorted."""
        return self.objects("Event", namespace, fields={"involvedObject.apiVersion": API_VERSION})

    def pods(self, namespace: str, selector: str) -> list[Object]:
        """Pods with these labels, including terminating pods."""
        return self.objects("Pod", namespace, selector)

    def service_address(self, namespace: str, name: str) -> tuple[str, int]:
        """ClusterIP and first port of a Service.

        Raises:
            OperationError: the Service does not exist.
        """
        service = self.object("Service", namespace, name)
        if service is None:
            raise OperationError(f"Service {name} does not exist in namespace {namespace}")
        return service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Object | None = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Any:
        """The open response of one request, whatever its status."""
        headers = {"Accept": accept, "Content-Type": content_type}
        target = f"{path}?{urlencode(query)}" if query else path
        method, url, headers, _, _ = self._api.param_serialize(
            method, target, query_params=[], header_params=headers, auth_settings=["BearerToken"]
        )
        sent: Any = json.dumps(body) if body is not None and content_type == APPLY else body
        try:
            return self._api.call_api(method, url, header_params=headers, body=sent).response
        except (HTTPError, client.ApiException, OSError) as error:
            raise self._unreachable(error) from error

    def _body(self, response: Any) -> bytes:
        """The whole body of a response.

        Raises:
            UnavailableError: the connection broke.
        """
        try:
            return cast("bytes", response.read())
        except (HTTPError, OSError) as error:
            raise UnavailableError(f"the connection to {self.server} broke: {error}") from error

    @property
    def _place(self) -> str:
        context = f" of context {self._context}" if self._context else ""
        return f"the API server {self.server}{context}"

    def _unreachable(self, error: Exception) -> OperationError:
        reason: object = error.reason if isinstance(error, MaxRetryError) else error
        proxy = self._api.configuration.proxy
        if isinstance(reason, ProxyError) and proxy:
            return UnavailableError(
                f"{self._place} cannot be reached through the proxy {proxy}: {reason}",
                ["NO_PROXY=HOST: reach the host of the API server without the proxy"],
            )
        return UnavailableError(
            f"{self._place} cannot be reached: {reason}",
            ["kubectl cluster-info: whether kubectl reaches it"],
        )

    def _unserved(self, path: str) -> OperationError:
        if f"/apis/{GROUP}/" not in path:
            return OperationError(f"the API server {self.server} does not serve {path}")
        return OperationError(
            f"the cluster {self.server} does not serve {API_VERSION}: the operator is not installed there",
            ["docs/installation.md: install it, or ask the cluster's administrators"],
        )


def path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    """URL path of the objects of a kind, or with a name of one object. No namespace: all namespaces."""
    api_version, plural = (API_VERSION, PLURALS[kind]) if kind in PLURALS else BUILT_IN[kind]
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    scope = "" if kind in CLUSTER_SCOPED or not namespace else f"/namespaces/{namespace}"
    return "/".join(part for part in (f"{root}{scope}/{plural}", name, subresource) if part)


def refusal(status: int, data: bytes) -> OperationError:
    """What the API server refused; a missing right names the role that has it."""
    if status in UNAVAILABLE:
        return UnavailableError(f"the API server answered {status}: {_excerpt(data)}")
    if not _is_status(data):
        return OperationError(f"the API server answered {status}: {_excerpt(data)}")
    message = str(json.loads(data).get("message", ""))
    if status == HTTPStatus.UNAUTHORIZED:
        return OperationError(
            "the API server does not accept the credentials of the context: log in again",
            ["kubectl auth whoami: who the credentials belong to"],
        )
    denied = FORBIDDEN.search(message) if status == HTTPStatus.FORBIDDEN else None
    if denied is None:
        return OperationError(message)
    user, verb, resource = denied.groups()
    place = re.search(r'in the namespace "(.+?)"', message)
    where = f" in namespace {place.group(1)}" if place else ""
    role = role_with(verb, resource)
    if role is None:
        return OperationError(f"{user} may not {verb} {resource}{where}: no role for people has this right")
    return OperationError(
        f"{user} may not {verb} {resource}{where}: the role {role} has this right (docs/tenants.md)",
        grant(role, shlex.quote(user), place.group(1) if place else "NAMESPACE"),
    )


def _excerpt(data: bytes) -> str:
    return " ".join(data.decode(errors="replace").split())[:200]


def grant(role: str, user: str, namespace: str) -> list[str]:
    """Commands with which an administrator gives a user a role in a namespace."""
    return [
        "for an administrator of the namespace:",
        f"kubectl create rolebinding NAME --clusterrole={role} --user={user} --namespace={namespace}",
    ]


def _is_status(data: bytes) -> bool:
    """Whether an answer is a Status of the API machinery, not the page of a path that is not served."""
    try:
        answer = json.loads(data)
    except ValueError:
        return False
    return isinstance(answer, dict) and answer.get("kind") == "Status"


def _configured(file: str | None, context: str) -> tuple[Any, str, str]:
    """API client, context and default namespace; for the pod's service account, the context is empty."""
    try:
        api = config.new_client_from_config(config_file=file, context=context or None)
        contexts, current = config.list_kube_config_contexts(config_file=file)
        chosen = next((each for each in contexts if each["name"] == context), current)
        return api, chosen["name"], chosen["context"].get("namespace") or "default"
    except ConfigException as error:
        if file is not None or context:
            raise OperationError(f"{context or file}: {error}", ["kubectl config get-contexts"]) from error
    try:
        settings = client.Configuration()
        config.load_incluster_config(client_configuration=settings)
    except ConfigException as error:
        raise OperationError(
            "no cluster is configured: `finetune run` needs none",
            ["kubectl config get-contexts: the clusters that kubectl knows"],
        ) from error
    namespace = Path(SERVICE_CERT_FILENAME).with_name("namespace").read_text().strip()
    return client.ApiClient(settings), "", namespace


def run_program(name: str, command: Sequence[str], arguments: Sequence[str], text: str | None) -> str:
    """Run `command` and `arguments` with `text` as its input, and return its output.

    Raises:
        OperationError: it failed or does not exist; the message contains `name`, `arguments` and the
            program's message.
    """
    line = shlex.join([name, *arguments])
    try:
        result = subprocess.run(
            [*command, *arguments], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise OperationError(f"{line} failed: {name} is not on PATH: install it") from error
    if result.returncode:
        raise OperationError(f"{line} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
