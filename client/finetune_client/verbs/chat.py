# SPDX-License-Identifier: Apache-2.0
"""`chat`: questions to a served model, or to two of them side by side."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
import yaml
from openai import DEFAULT_MAX_RETRIES, OpenAI, OpenAIError

from finetune_client.backend import Backend, parse
from finetune_client.conversation import Conversation, Speaker
from finetune_client.decisions import evaluated_checkpoint, followers_of
from finetune_client.endpoint import KEY_VARIABLE, Endpoint, key_of, open_endpoint
from finetune_client.errors import OperationError, ProgramExit
from finetune_client.tables import console, printable
from finetune_client.verbs.listing import complete_runs
from finetune_client.verbs.options import Connect, connected
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.meta import API_VERSION
from finetune_operator.status.conditions import present_state

BASE: Final = "base"
"""Name under which an endpoint with adapters serves its base model."""


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """A model of an endpoint."""

    endpoint: InferenceDeployment
    model: str


@connected()
def chat(
    name: Annotated[
        str,
        typer.Argument(
            help="InferenceDeployment, or Checkpoint or run that one serves, or the URL of a server.",
            metavar="ENDPOINT|CHECKPOINT|RUN|URL",
            autocompletion=complete_runs,
        ),
    ],
    question: Annotated[
        str | None,
        typer.Argument(help="One question. Default: typed questions, or standard input as one question."),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option("--model", help="Model of the endpoint. Default: its first one.", metavar="NAME")
    ] = "",
    second: Annotated[
        str, typer.Option("--with", help="Second model to ask, such as base.", metavar="MODEL")
    ] = "",
    system: Annotated[str, typer.Option("--system", help="System message.", metavar="TEXT")] = "",
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Default: that of the server.", min=0)
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Limit of an answer. Default: the server's.", min=1)
    ] = None,
    key: Annotated[
        str,
        typer.Option(
            "--key",
            envvar=KEY_VARIABLE,
            help="API key. Default: one of the Secret that the endpoint names, if you may read it.",
            metavar="KEY",
        ),
    ] = "",
    connect: Connect,
) -> None:
    """Ask a served model, or two side by side."""
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    if question == "":
        raise OperationError("the question is empty", exit_code=ProgramExit.INVALID)
    settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
    settings = {field: value for field, value in settings.items() if value is not None}
    messages = [{"role": "system", "content": system}] if system else []
    reached = _reached(name, key, connect)
    with reached as (route, default), route.client(DEFAULT_MAX_RETRIES) as client:
        first = model or default or _first_model(client)
        asked = [each for each in (first, second) if each]
        speakers = [Speaker(client, each, settings, list(messages)) for each in asked]
        conversation = Conversation(console(), speakers)
        if question is not None:
            conversation.ask(question)
            return
        typer.echo(f"{' and '.join(asked)} through {route.how}; Ctrl-D ends the chat", err=True)
        conversation.converse(_prompt)


def _prompt() -> str:
    with suppress(ImportError):
        # Lines can then be edited and recalled.
        import readline  # noqa: F401
    return input("> ")


@contextmanager
def _reached(name: str, key: str, backend_of: Callable[[], Backend]) -> Iterator[tuple[Endpoint, str]]:
    """The route to what `name` means, and the model to ask; empty if only the server knows it."""
    if name.startswith(("http://", "https://")):
        url = name.rstrip("/")
        yield Endpoint(url if url.endswith("/v1") else f"{url}/v1", url, key=key), ""
        return
    backend: Backend = backend_of()
    target = find_target(backend, name)
    access = getattr(backend, "access", None)
    if access is None:
        url = backend.url(target.endpoint.name)  # type: ignore[attr-defined] # of a folder
        yield Endpoint(url, url, key=key), target.model
        return
    with open_endpoint(
        access, target.endpoint.name, backend.namespace, key or key_of(backend, target.endpoint)
    ) as route:
        yield route, target.model


def _first_model(client: OpenAI) -> str:
    try:
        names = [each.id for each in client.models.list()]
    except OpenAIError as error:
        raise OperationError(f"{client.base_url} does not answer: {printable(str(error))}") from error
    return next((each for each in names if each != BASE), BASE)


def find_target(backend: Backend, name: str) -> ChatTarget:
    """The model that an endpoint, a Checkpoint or a run of this name means.

    Raises:
        OperationError: nothing serves it. The message says how to serve it.
    """
    found = backend.get("InferenceDeployment", name)
    if found is not None:
        endpoint = parse(InferenceDeployment, found)
        return ChatTarget(_ready(endpoint), endpoint.model_names[0])
    checkpoint = _checkpoint(backend, name)
    endpoints = [parse(InferenceDeployment, each) for each in backend.objects("InferenceDeployment")]
    for endpoint in endpoints:
        for served in endpoint.status.models:
            if served.checkpoint == checkpoint.name:
                return ChatTarget(_ready(endpoint), served.name)
    raise _unserved(checkpoint, endpoints)


def _checkpoint(backend: Backend, name: str) -> Checkpoint:
    found = backend.get("Checkpoint", name)
    if found is None:
        job = backend.get("FineTuneJob", name)
        if job is None:
            names = sorted(each["metadata"]["name"] for each in backend.objects("InferenceDeployment"))
            raise OperationError(
                f"namespace {backend.namespace} has no InferenceDeployment, Checkpoint or FineTuneJob {name};"
                f" endpoints: {', '.join(names) or 'none'}",
                exit_code=ProgramExit.INVALID,
            )
        made = evaluated_checkpoint(parse(FineTuneJob, job))
        found = backend.get("Checkpoint", made)
        if found is None:
            raise OperationError(f"Checkpoint {made} of FineTuneJob {name} was deleted")
    return parse(Checkpoint, found)


def _ready(endpoint: InferenceDeployment) -> InferenceDeployment:
    if endpoint.status.ready_replicas:
        return endpoint
    state = present_state(endpoint.status.conditions)
    why = f"{state.reason}: {state.message}" if state is not None else "it was not reconciled yet"
    raise OperationError(
        f"InferenceDeployment {endpoint.name} has no ready replica: {printable(why)}",
        [f"kubectl -n {endpoint.namespace} get infd {endpoint.name} --watch"],
    )


def _unserved(checkpoint: Checkpoint, endpoints: list[InferenceDeployment]) -> OperationError:
    """Say how to serve a Checkpoint: by promotion where an endpoint follows its line, or by a pin."""
    line, namespace = checkpoint.spec.model_line, checkpoint.namespace
    followers = followers_of(line, endpoints)
    commands = [
        f"finetune approve {checkpoint.name} -n {namespace} --reason TEXT  # {each} follows {line}"
        for each in followers[:1]
    ]
    taken = {endpoint.name for endpoint in endpoints}
    name = next(each for each in (line, f"{line}-chat", checkpoint.name) if each not in taken)
    manifest = {
        "apiVersion": API_VERSION,
        "kind": "InferenceDeployment",
        "metadata": {"name": name},
        "spec": {"models": [{"name": line, "pin": {"checkpoint": checkpoint.name}}]},
    }
    return OperationError(
        f"no endpoint serves Checkpoint {checkpoint.name}. To serve it, apply this as a file:",
        [*commands, f"kubectl -n {namespace} apply -f FILE"],
        yaml.safe_dump(manifest, sort_keys=False).splitlines(),
    )
