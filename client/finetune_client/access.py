# SPDX-License-Identifier: Apache-2.0
"""kubectl, helm and API requests with the same credentials."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final, Self, cast

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

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
