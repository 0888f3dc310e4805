# SPDX-License-Identifier: Apache-2.0
"""The route to an endpoint from outside the cluster, and answers of its models."""

import re
import socket
import subprocess
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from openai import DefaultHttpxClient, OpenAI, OpenAIError

from finetune_client.access import Access
from finetune_client.backend import Backend
from finetune_client.errors import OperationError
from finetune_operator.api.inference_deployment import InferenceDeployment

REQUEST_SECONDS: Final = 60.0
REACH_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: base URL for clients.
        how: description of the route to it.
        proxied: whether requests pass the API server, which accepts no foreign API key.
        key: API key of the endpoint; empty if it needs none.
    """

    url: str
    how: str
    proxied: bool = False
    key: str = ""

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
            api_key=self.key or "none",
            max_retries=max_retries,
            timeout=REQUEST_SECONDS,
            # Requests to addresses of the cluster must not use this machine's HTTP proxy.
            http_client=DefaultHttpxClient(trust_env=False, timeout=REQUEST_SECONDS, event_hooks=hooks),
        )


def _without_key(request: Any) -> None:
    request.headers.pop("Authorization", None)


@contextmanager
def open_endpoint(access: Access, service: str, namespace: str, key: str = "") -> Iterator[Endpoint]:
    """The endpoint behind a Service, reachable during the block.

    Args:
        access: kubectl and API requests.
        service: name of the Service.
        namespace: its namespace.
        key: API key, which the API server would take for its own: with one, requests go through a port that
            kubectl forwards.

    Raises:
        OperationError: kubectl did not open the route.
    """
    address, port = access.service_address(namespace, service)
    if _accepts_connections(address, port):
        yield Endpoint(f"http://{address}:{port}/v1", f"the Service's address {address}", key=key)
    elif key:
        arguments = ("port-forward", f"--namespace={namespace}", f"service/{service}", f":{port}")
        with _running(access, *arguments, "--address=127.0.0.1") as local:
            yield Endpoint(f"http://{local}/v1", "a port that kubectl forwards", key=key)
    else:
        with _running(access, "proxy", "--port=0") as local:
            path = f"api/v1/namespaces/{namespace}/services/{service}:{port}/proxy/v1"
            yield Endpoint(f"http://{local}/{path}", "the API server's proxy", proxied=True)


@contextmanager
def _running(access: Access, *arguments: str) -> Iterator[str]:
    """Run kubectl during the block; the address on the loopback that its first line names."""
    command = access.kubectl_command(*arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else ""
            match = re.search(r"127\.0\.0\.1:\d+", line)
            if match is None:
                raise OperationError(f"kubectl {arguments[0]} did not start: {line.strip()}")
            yield match.group()
        finally:
            process.terminate()


def _accepts_connections(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), REACH_SECONDS):
            return True
    except OSError:
        return False


KEY_VARIABLE: Final = "FINETUNE_API_KEY"


def key_of(backend: Backend, endpoint: InferenceDeployment) -> str:
    """A key of the Secret that the endpoint names; empty if it names none.

    Raises:
        OperationError: the Secret cannot be read or has no key.
    """
    serving = endpoint.spec.serving
    reference = serving.api_keys_secret_ref if serving is not None else None
    if reference is None:
        return ""
    needs = f"{endpoint.name} requires an API key: set {KEY_VARIABLE} or --key"
    try:
        secret = backend.get("Secret", reference.name)
    except OperationError as error:
        raise OperationError(f"{needs}; its Secret {reference.name} cannot be read: {error}") from error
    values = (b64decode(value).decode().strip() for value in (secret or {}).get("data", {}).values())
    key = next((value for value in values if value), None)
    if key is None:
        raise OperationError(f"{needs}; its Secret {reference.name} has no key")
    return key


ANSWER_TOKENS: Final = 16


def ask(client: OpenAI, model: str, prompt: str) -> str:
    """The model's answer at temperature 0 of at most ANSWER_TOKENS tokens, on one line."""
    completion = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
    )
    return " ".join((completion.choices[0].message.content or "").split())


def ask_streamed(client: OpenAI, model: str, prompt: str) -> str:
    """The answer of `ask`, read as a stream.

    Raises:
        OpenAIError: the request failed, or its stream ended before the answer did.
    """
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
    )
    choices = [choice for chunk in stream for choice in chunk.choices]
    if not any(choice.finish_reason for choice in choices):
        raise OpenAIError("the stream ended before the answer did")
    return " ".join("".join(choice.delta.content or "" for choice in choices).split())


@dataclass(frozen=True)
class ComparedAnswers:
    """One question with the expected answer and those of both models."""

    prompt: str
    expected: str
    base: str
    tuned: str
