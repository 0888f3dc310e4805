# SPDX-License-Identifier: Apache-2.0
"""Access to the cluster of the demo (local, or of the context KUBE_CONTEXT), its namespace and endpoint."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Self, cast

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from openai import DefaultHttpxClient, OpenAI

from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.meta import GROUP, VERSION
from tools.cluster import TestCluster, program


class DemoError(Exception):
    """A step failed.

    Attributes:
        commands: commands for details or a remedy.
        details: lines of output, such as the end of a pod's log.
    """

    def __init__(self, message: str, commands: Sequence[str] = (), details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.commands = tuple(commands)
        self.details = tuple(details)


Object = dict[str, Any]
"""An object of the API server as JSON."""

CONTEXT: Final = os.environ.get("KUBE_CONTEXT", "")


class Access:
    """kubectl, helm and API requests with the same credentials.

    Attributes:
        where: description of the cluster.
        hint: command after which plain `kubectl` uses the same cluster; empty if none is needed.
    """

    def __init__(
        self, kubectl: list[str], helm: list[str], api: client.ApiClient, *, where: str, hint: str = ""
    ) -> None:
        self._kubectl = kubectl
        self._helm = helm
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self.where = where
        self.hint = hint

    @classmethod
    def from_environment(cls, helm: str = "helm") -> Self:
        """Access to the cluster that the environment selects.

        Args:
            helm: program that the local cluster's tools or a peer's have built.

        Raises:
            DemoError: kubectl, helm or the context is missing, or the local cluster does not run.
        """
        if not CONTEXT:
            kubeconfig = TestCluster().kubeconfig
            if not kubeconfig.exists():
                raise DemoError("the local cluster does not run: start it", ["make cluster"])
            option = f"--kubeconfig={kubeconfig}"
            return cls(
                [str(program("kubectl")), option],
                [str(program(helm)), option],
                config.new_client_from_config(config_file=str(kubeconfig)),
                where="the local cluster",
                hint='eval "$(.venv/bin/python -m tools.cluster env)"',
            )
        try:
            api = config.new_client_from_config(context=CONTEXT)
        except config.ConfigException as error:
            raise DemoError(f"KUBE_CONTEXT={CONTEXT}: {error}", ["kubectl config get-contexts"]) from error
        return cls(
            [_installed("kubectl"), f"--context={CONTEXT}"],
            [_installed(helm), f"--kube-context={CONTEXT}"],
            api,
            where=f"the cluster of context {CONTEXT}",
            hint=f"kubectl config use-context {shlex.quote(CONTEXT)}",
        )

    def kubectl_command(self, *arguments: str) -> list[str]:
        """Command line of one kubectl call."""
        return [*self._kubectl, *arguments]

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with `text` as its input, and return its output.

        Raises:
            DemoError: it failed; the message contains kubectl's message.
        """
        return _run(self.kubectl_command(*arguments), "kubectl", arguments, text)

    def helm(self, *arguments: str, text: str | None = None) -> str:
        """Run helm with `text` as its input, and return its output.

        Raises:
            DemoError: it failed; the message contains Helm's message.
        """
        return _run([*self._helm, *arguments], "helm", arguments, text)

    def objects(self, kind: str, namespace: str) -> list[Object]:
        """All objects of one of our kinds in a namespace."""
        plural = KINDS_BY_NAME[kind].plural
        answer: Any = self._custom.list_namespaced_custom_object(GROUP, VERSION, namespace, plural)
        return cast("list[Object]", answer["items"])

    def object(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object of our kinds; None if it does not exist."""
        try:
            plural = KINDS_BY_NAME[kind].plural
            return cast(
                "Object", self._custom.get_namespaced_custom_object(GROUP, VERSION, namespace, plural, name)
            )
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def events(self, namespace: str) -> list[Object]:
        """All Events of a namespace, not sorted."""
        return _items(self._core.list_namespaced_event(namespace, _preload_content=False))

    def pods(self, namespace: str, selector: str) -> list[Object]:
        """Pods with these labels, including terminating pods."""
        core = self._core
        return _items(core.list_namespaced_pod(namespace, label_selector=selector, _preload_content=False))

    def service_address(self, namespace: str, name: str) -> tuple[str, int]:
        """ClusterIP and first port of a Service."""
        response: Any = self._core.read_namespaced_service(name, namespace, _preload_content=False)
        service = json.loads(response.data)
        return service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]


def _items(response: Any) -> list[Object]:
    return cast("list[Object]", json.loads(response.data)["items"])


def _installed(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise DemoError(f"KUBE_CONTEXT is set, but {name} is not on PATH: install it")
    return path


def _run(command: list[str], name: str, arguments: tuple[str, ...], text: str | None) -> str:
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        line = shlex.join([name, *arguments])
        raise DemoError(f"{line} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


NAMESPACE: Final = "finetune-demo"

MANIFEST: Final = f"""\
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    # Every pod of a run passes the strictest of the Pod Security Standards.
    pod-security.kubernetes.io/enforce: restricted
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: models
  namespace: {NAMESPACE}
spec:
  accessModes: [ReadWriteMany]
  resources:
    requests:
      storage: 2Gi
"""

OURS: Final = "inferencedeployments,finetunejobs,datasets,checkpoints,datasetversions"


def prepare_namespace(access: Access) -> list[str]:
    """Create the namespace and the claim for the base model; returns the names of removed objects.

    The base model is kept, because copying it takes longer than everything else here.
    """
    access.kubectl("apply", "--server-side", "--filename=-", text=MANIFEST)
    scope = f"--namespace={NAMESPACE}"
    found = access.kubectl("get", OURS, scope, "--output=name", "--ignore-not-found").split()
    if found:
        # In the foreground, so that their pods are deleted first.
        access.kubectl("delete", scope, "--cascade=foreground", "--timeout=180s", *found)
    access.kubectl("delete", "persistentvolumeclaim/artifacts", scope, "--ignore-not-found", "--timeout=120s")
    return found


REQUEST_SECONDS: Final = 60.0
REACH_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: base URL for clients.
        how: description of the route to it.
        proxied: whether requests pass the API server, which accepts no foreign API key.
    """

    url: str
    how: str
    proxied: bool = False

    def client(self, max_retries: int = 0, on_shed: Callable[[], None] | None = None) -> OpenAI:
        """A client, by default without retries, so that each failed attempt is visible.

        `on_shed`: called for each attempt that the endpoint refuses because of load (429).
        """

        def report_shed(response: Any) -> None:
            if response.status_code == HTTPStatus.TOO_MANY_REQUESTS and on_shed is not None:
                on_shed()

        hooks: dict[str, Any] = {
            "request": [_without_key] if self.proxied else [],
            "response": [report_shed],
        }
        return OpenAI(
            base_url=self.url,
            api_key="none",
            max_retries=max_retries,
            timeout=REQUEST_SECONDS,
            # Requests to addresses of the cluster must not use this machine's HTTP proxy.
            http_client=DefaultHttpxClient(trust_env=False, timeout=REQUEST_SECONDS, event_hooks=hooks),
        )


def _without_key(request: Any) -> None:
    request.headers.pop("Authorization", None)


@contextmanager
def open_endpoint(access: Access, service: str, namespace: str = NAMESPACE) -> Iterator[Endpoint]:
    """The endpoint behind a Service, reachable during the block.

    Raises:
        DemoError: kubectl proxy did not start.
    """
    address, port = access.service_address(namespace, service)
    if _accepts_connections(address, port):
        yield Endpoint(f"http://{address}:{port}/v1", f"the Service's address {address}")
        return
    command = access.kubectl_command("proxy", "--port=0")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as proxy:
        try:
            line = proxy.stdout.readline() if proxy.stdout is not None else ""
            match = re.search(r"127\.0\.0\.1:\d+", line)
            if match is None:
                raise DemoError(f"kubectl proxy did not start: {line.strip()}")
            path = f"api/v1/namespaces/{namespace}/services/{service}:{port}/proxy/v1"
            yield Endpoint(f"http://{match.group()}/{path}", "the API server's proxy", proxied=True)
        finally:
            proxy.terminate()


def _accepts_connections(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), REACH_SECONDS):
            return True
    except OSError:
        return False
