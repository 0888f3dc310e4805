# SPDX-License-Identifier: Apache-2.0
"""One table of requests by OpenAI's client, to vLLM and to the built-in engine: both answer them alike."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import httpx
import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from finetune_trainer.contract.serving import ServedModel
from tests.peers.test_vllm_pod import QUESTION, FetchedPod
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tests.trainer.serve.test_serve_apikeys import RIGHT
from tests.trainer.serve.test_serve_constraint import linked
from tests.trainer.serve.test_vllm_middleware import counted, tag_with
from tests.trainer.workbench import ROWS
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")

ENGINES: Final = ("VLLM", "Transformers")
ANSWER: Final = ROWS[0].output
TWO: Final[dict[str, Any]] = {"n": 2, "temperature": 0.01}
"""vLLM refuses several choices at temperature 0; at this one the answers are the greedy ones."""
GREEDY: Final[dict[str, Any]] = {"temperature": 0, "max_tokens": 16}

Call = Callable[[openai.OpenAI], Any]


TICKET: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "team": {"enum": ["dispatch", "returns", "billing"]},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["late", "lost"]}, "maxItems": 2},
    },
    "required": ["team", "urgent", "tags"],
    "additionalProperties": False,
}
"""Without free text: vLLM 0.32 wrote a control character into a string with `maxLength`, which is no JSON."""


class Ticket(BaseModel):
    urgent: bool


def chat(client: openai.OpenAI, model: str = "router", **settings: Any) -> Any:
    return client.chat.completions.create(
        **{"model": model, "messages": [{"role": "user", "content": QUESTION}], **GREEDY, **settings}
    )


def completion(client: openai.OpenAI, model: str = "router", **settings: Any) -> Any:
    return client.completions.create(**{"model": model, "prompt": QUESTION, **GREEDY, **settings})


def usage(answer: Any) -> tuple[int, int, int]:
    found = answer.usage
    return found.prompt_tokens, found.completion_tokens, found.total_tokens


def of_chat(answer: Any) -> Any:
    (choice,) = answer.choices
    return answer.model, choice.message.role, choice.message.content, choice.finish_reason, usage(answer)


def of_completion(answer: Any) -> Any:
    (choice,) = answer.choices
    return answer.model, choice.text, choice.finish_reason, usage(answer)


def of_choices(answer: Any) -> Any:
    """Texts, ends and usage of an answer with several choices."""
    choices = [(each.index, each.message.content, each.finish_reason) for each in answer.choices]
    return choices, usage(answer)


def of_stream_of_choices(chunks: Any) -> Any:
    """Text, ends and usage of each choice of a stream."""
    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, list[str]] = defaultdict(list)
    usages = []
    for chunk in chunks:
        usages += [usage(chunk)] if chunk.usage else []
        for each in chunk.choices:
            texts[each.index] += each.delta.content or ""
            ends[each.index] += [each.finish_reason] if each.finish_reason else []
    return dict(texts), dict(ends), usages


def logprobs_of(choices: Iterable[Any]) -> list[Any]:
    """Log-probabilities of an answer or of the chunks of a stream."""
    return [token for each in choices if each.logprobs for token in each.logprobs.content]


def of_stream(chunks: Any) -> Any:
    """Text, end and usage of a stream, which are in chunks of different kinds."""
    choices, usages = [], []
    for chunk in chunks:
        choices += chunk.choices
        usages += [usage(chunk)] if chunk.usage else []
    texts = [each.delta.content if hasattr(each, "delta") else each.text for each in choices]
    return "".join(text or "" for text in texts), [each.finish_reason for each in choices][-1], usages


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def repeated(times: int) -> str:
    """A grammar of three rules that repeat one another up to so many times each."""
    return f'root ::= r{{0,{times}}}\nr ::= s{{0,{times}}} "b"\ns ::= "a"{{0,{times}}} "c"'


def within(grammar: str) -> dict[str, Any]:
    """Settings of a request whose answer is constrained by a grammar."""
    return {"extra_body": {"structured_outputs": {"grammar": grammar}}}


STREAMED: Final[dict[str, Any]] = {"stream": True, "stream_options": {"include_usage": True}}
ANSWERED: Final[dict[str, Call]] = {
    "chat": lambda client: of_chat(chat(client)),
    "chat with the base model": lambda client: of_chat(chat(client, "base", max_tokens=3)),
    "chat of several turns": lambda client: of_chat(
        chat(
            client,
            messages=[
                {"role": "system", "content": "Name the team."},
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": ANSWER},
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
            ],
        )
    ),
    "chat that is cut off": lambda client: of_chat(chat(client, max_tokens=1)),
    "chat with max_completion_tokens": lambda client: of_chat(
        chat(client, max_tokens=None, max_completion_tokens=2)
    ),
    "chat with a stop text": lambda client: of_chat(chat(client, stop=ANSWER[2:4])),
    "chat with stop texts": lambda client: of_chat(chat(client, stop=["never", ANSWER[1:3]])),
    "stream of a chat": lambda client: of_stream(chat(client, **STREAMED)),
    "stream of a chat without usage": lambda client: of_stream(chat(client, stream=True)),
    "stream with a stop text": lambda client: of_stream(chat(client, stop=ANSWER[2:4], **STREAMED)),
    "two choices": lambda client: of_choices(chat(client, **TWO)),
    "stream of two choices": lambda client: of_stream_of_choices(chat(client, **TWO, **STREAMED)),
    "tokens of log-probabilities": lambda client: [
        (each.token, each.bytes, [other.token for other in each.top_logprobs[:1]])
        for each in logprobs_of(chat(client, logprobs=True, top_logprobs=2).choices)
    ],
    "completion": lambda client: of_completion(completion(client)),
    "completion of token ids": lambda client: of_completion(completion(client, prompt=[5, 6, 7])),
    "completion with a stop text": lambda client: of_completion(completion(client, "base", stop="e")),
    "stream of a completion": lambda client: of_stream(completion(client, **STREAMED)),
    "models": lambda client: {each.id: getattr(each, "parent") for each in client.models.list()},  # noqa: B009
    "a field without effect": lambda client: of_chat(chat(client, extra_body={"user": "anna"})),
}
"""Requests that both engines answer with the same text, end and usage."""

REFUSED: Final[dict[str, tuple[int, Call]]] = {
    "unknown model": (404, lambda client: chat(client, "nothing")),
    "unknown model of a completion": (404, lambda client: completion(client, "nothing")),
    "no messages": (400, lambda client: chat(client, messages=[])),
    "an image": (
        400,
        lambda client: chat(
            client,
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
            ],
        ),
    ),
    "temperature too high": (400, lambda client: chat(client, temperature=5)),
    "temperature below 0": (400, lambda client: chat(client, temperature=-1)),
    "top_p above 1": (400, lambda client: chat(client, top_p=2)),
    "max_tokens below 0": (400, lambda client: chat(client, max_tokens=-1)),
    "max_tokens beyond the context": (400, lambda client: chat(client, max_tokens=100_000)),
    "a prompt beyond the context": (400, lambda client: completion(client, prompt="word " * 9000)),
    "an empty prompt": (400, lambda client: completion(client, prompt="")),
    "a token beyond the vocabulary": (400, lambda client: completion(client, prompt=[10**6])),
    "n of 0": (400, lambda client: chat(client, n=0)),
    "n beyond the limit": (400, lambda client: chat(client, n=100_000)),
    "top_logprobs without logprobs": (400, lambda client: chat(client, top_logprobs=2)),
    "top_logprobs beyond the limit": (400, lambda client: chat(client, logprobs=True, top_logprobs=100)),
    "a form that does not exist": (400, lambda client: chat(client, response_format={"type": "xml"})),
    "a schema that is missing": (400, lambda client: chat(client, response_format={"type": "json_schema"})),
    "a schema that is none": (400, lambda client: chat(client, response_format=form({"type": "nothing"}))),
    "a schema of too many references": (
        400,
        lambda client: chat(client, response_format=form(linked(3000))),
    ),
    "an object with many properties, of which some must occur": (
        400,
        lambda client: chat(client, response_format=form(counted(200, minProperties=1))),
    ),
    "rules that repeat one another too often": (400, lambda client: chat(client, **within(repeated(10_000)))),
    "such rules within a structural tag": (
        400,
        lambda client: chat(client, response_format=tag_with(repeated(10_000))),
    ),
    "a misspelt field": (400, lambda client: chat(client, extra_body={"temprature": 0})),
    "a template of the client": (
        400,
        lambda client: chat(client, extra_body={"chat_template_kwargs": {"chat_template": "{{ x }}"}}),
    ),
    "an image without a type": (
        400,
        lambda client: chat(
            client, messages=[{"role": "user", "content": [{"image_url": "http://127.0.0.1:1/"}]}]
        ),
    ),
    "a wrong type": (400, lambda client: chat(client, max_tokens="many")),
    "no key": (401, lambda client: chat(client.with_options(api_key="none"))),
    "no key for models": (401, lambda client: list(client.with_options(api_key="none").models.list())),
    "another route": (404, lambda client: client.embeddings.create(model="router", input="x")),
}
"""Requests that both engines refuse with the same status, as an error that OpenAI's client understands."""

DIFFERENT: Final[dict[str, tuple[Call, dict[str, int]]]] = {
    "two greedy answers": (lambda client: chat(client, n=2), {"VLLM": 400, "Transformers": 200}),
    "log-probabilities of a completion": (
        lambda client: completion(client, logprobs=1),
        {"VLLM": 200, "Transformers": 400},
    ),
    "rules that repeat one another": (
        lambda client: chat(client, **within(repeated(99))),
        {"VLLM": 200, "Transformers": 400},
    ),
}
"""Requests that only one engine answers, as docs/endpoints.md says."""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, openai.OpenAI]]:
    """A client of each engine, with the same models."""
    pod = FetchedPod.with_router(tmp_path_factory.mktemp("pod"))
    config = serve_config(
        pod.models,
        base_folder="base",
        models=(ServedModel(name="router", folder="router"),),
        max_model_length=512,
        api_keys_path=str(pod.keys),
    )
    with pod.server(key=RIGHT) as server, served_here(config) as endpoint:
        yield {"VLLM": client_of(server), "Transformers": client_of(endpoint)}


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=RIGHT, max_retries=0)


@pytest.mark.parametrize("name", ANSWERED)
def test_both_engines_answer_alike(clients: dict[str, openai.OpenAI], name: str) -> None:
    found = {engine: ANSWERED[name](clients[engine]) for engine in ENGINES}
    assert found["VLLM"] == found["Transformers"]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_equal(clients: dict[str, openai.OpenAI], *, stream: bool) -> None:
    found: dict[str, list[Any]] = {}
    for engine in ENGINES:
        answer = chat(clients[engine], logprobs=True, top_logprobs=2, stream=stream)
        choices = (each for chunk in answer for each in chunk.choices) if stream else answer.choices
        found[engine] = [
            value
            for token in logprobs_of(choices)
            for value in (token.logprob, *(each.logprob for each in token.top_logprobs))
        ]
    assert found["Transformers"] == pytest.approx(found["VLLM"], abs=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 2])
def test_an_answer_matches_its_schema(
    clients: dict[str, openai.OpenAI], engine: str, *, stream: bool, temperature: float
) -> None:
    settings: dict[str, Any] = {"max_tokens": 300, "temperature": temperature, "seed": 3, "stream": stream}
    answer = chat(clients[engine], response_format=form(TICKET), **settings)
    text = of_stream(answer)[0] if stream else answer.choices[0].message.content
    Draft202012Validator(TICKET).validate(json.loads(text))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_client_parses_an_answer(clients: dict[str, openai.OpenAI], engine: str) -> None:
    answer = clients[engine].chat.completions.parse(
        model="router",
        messages=[{"role": "user", "content": QUESTION}],
        response_format=Ticket,
        temperature=0,
        max_tokens=200,
    )
    assert isinstance(answer.choices[0].message.parsed, Ticket)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("engine", ENGINES)
def test_both_engines_refuse_alike(clients: dict[str, openai.OpenAI], engine: str, name: str) -> None:
    status, call = REFUSED[name]
    with pytest.raises(openai.APIStatusError) as caught:
        call(clients[engine])
    assert caught.value.status_code == status
    assert caught.value.body["message"]  # type: ignore[index]  # the error of the API's shape


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("engine", ENGINES)
def test_only_one_engine_answers(clients: dict[str, openai.OpenAI], engine: str, name: str) -> None:
    call, statuses = DIFFERENT[name]
    try:
        call(clients[engine])
        status = httpx.codes.OK
    except openai.APIStatusError as error:
        status = httpx.codes(error.status_code)
    assert status == statuses[engine]
