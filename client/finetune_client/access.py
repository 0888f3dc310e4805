# SPDX-License-Identifier: Apache-2.0
"""kubectl and API requests with the same credentials."""

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from finetune_client.backend import Object
from finetune_client.errors import OperationError
from finetune_operator.api.crd import KINDS_BY_NAME
from finetune_operator.api.meta import GROUP, VERSION


class Access:
    """kubectl and API requests with the same credentials.

    Args:
        kubectl: name or path of the program.
        kubeconfig: file with clusters and credentials; None selects the user's, as kubectl does.
        context: context in that file; empty selects its current context.

    Raises:
        ConfigException: the file or the context is missing.
    """

    def __init__(self, kubectl: str, *, kubeconfig: Path | None = None, context: str = "") -> None:
        file = str(kubeconfig) if kubeconfig is not None else None
        options = {"kubeconfig": file, "context": context}
        self._kubectl = [kubectl, *(f"--{name}={value}" for name, value in options.items() if value)]
        api = config.new_client_from_config(config_file=file, context=context or None)
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    def kubectl_command(self, *arguments: str) -> list[str]:
        """Command line of one kubectl call."""
        return [*self._kubectl, *arguments]

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """Run kubectl with `text` as its input, and return its output.

        Raises:
            OperationError: it failed; the message contains kubectl's message.
        """
        return run_program("kubectl", self._kubectl, arguments, text)

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


def run_program(name: str, command: Sequence[str], arguments: Sequence[str], text: str | None) -> str:
    """Run `command` and `arguments` with `text` as its input, and return its output.

    Raises:
        OperationError: it failed; the message contains `name`, `arguments` and the program's message.
    """
    result = subprocess.run([*command, *arguments], input=text, capture_output=True, text=True, check=False)
    if result.returncode:
        line = shlex.join([name, *arguments])
        raise OperationError(f"{line} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout
