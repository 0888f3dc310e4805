# SPDX-License-Identifier: Apache-2.0
"""Answers that match a JSON Schema, whatever the model would write."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from finetune_trainer.model.generation import Sampler
from finetune_trainer.serve.constraint import Grammars
from finetune_trainer.serve.detokenization import AnswerReaders
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tests.trainer.serve.models import ADAPTERS
from tests.trainer.serve.test_serve_reasoning import THINKS, tokenizer_with

QUESTION: Any = {"role": "user", "content": "Where is my parcel?"}
TICKET: dict[str, Any] = {
    "type": "object",
    "properties": {
        "team": {"enum": ["dispatch", "returns", "billing"]},
        "urgent": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["team", "urgent", "tags"],
    "additionalProperties": False,
}
CHOICE: dict[str, Any] = {"enum": ["left", "right"]}


def linked(definitions: int) -> dict[str, Any]:
    """A schema of definitions that refer to one another in a row."""
    links: dict[str, Any] = {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(definitions)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(definitions): {"type": "boolean"}}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def asked(schema: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {
        "model": "base",
        "messages": [QUESTION],
        "max_tokens": 450,
        "response_format": form(schema),
        "seed": 5,
        **settings,
    }


@pytest.mark.parametrize("model", ["base", *ADAPTERS])
@pytest.mark.parametrize("temperature", [0, 2])
def test_an_answer_matches_its_schema(endpoint: Endpoint, model: str, temperature: float) -> None:
    (choice,) = endpoint.openai.chat.completions.create(
        **asked(TICKET, model=model, temperature=temperature)
    ).choices

    assert choice.finish_reason == "stop"
    Draft202012Validator(TICKET).validate(json.loads(choice.message.content or ""))


def test_the_client_parses_an_answer_into_a_model(endpoint: Endpoint) -> None:
    class Ticket(BaseModel):
        urgent: bool

    answer = endpoint.openai.chat.completions.parse(
        model="base", messages=[QUESTION], response_format=Ticket, max_tokens=200
    )

    assert isinstance(answer.choices[0].message.parsed, Ticket)


def test_json_mode_begins_an_object(endpoint: Endpoint) -> None:
    settings = {**asked({}, max_tokens=30), "response_format": {"type": "json_object"}}
    (choice,) = endpoint.openai.chat.completions.create(**settings).choices

    assert (choice.message.content or "").startswith("{")


def test_rows_with_different_schemas_and_without_one_share_batches(root: Path) -> None:
    settings: list[dict[str, Any]] = [
        asked(TICKET, temperature=1.5, seed=1),
        asked(CHOICE, temperature=0),
        asked(TICKET, model=ADAPTERS[0], temperature=0),
        {**asked({}, temperature=0, max_tokens=30), "response_format": {"type": "text"}},
        asked(CHOICE, temperature=1.5, seed=2, n=2),
    ] * 3

    with served_here(serve_config(root, max_batch_size=5)) as served, ThreadPoolExecutor(8) as pool:

        def ask(one: dict[str, Any]) -> list[str | None]:
            return [each.message.content for each in served.openai.chat.completions.create(**one).choices]

        alone = [ask(one) for one in settings[:5]] * 3
        assert list(pool.map(ask, settings)) == alone
    for one, texts in zip(settings, alone, strict=True):
        if one["response_format"]["type"] == "json_schema":
            for text in texts:
                schema = one["response_format"]["json_schema"]["schema"]
                Draft202012Validator(schema).validate(json.loads(text or ""))


def test_a_stream_has_the_same_text_and_logprobs_of_allowed_tokens(endpoint: Endpoint) -> None:
    settings = asked(CHOICE, temperature=0, logprobs=True, top_logprobs=20)
    (whole,) = endpoint.openai.chat.completions.create(**settings).choices

    chunks = list(endpoint.openai.chat.completions.create(**settings, stream=True))

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert whole.message.content in ('"left"', '"right"')
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    first = whole.logprobs.content[0].top_logprobs
    assert {each.token.strip()[:1] for each in first} == {'"'}


def test_an_answer_that_is_cut_off_says_so(endpoint: Endpoint) -> None:
    (choice,) = endpoint.openai.chat.completions.create(**asked(TICKET, max_tokens=2)).choices

    assert choice.finish_reason == "length"


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({"type": "xml"}, "response_format.type", "'json_schema'"),
        ({"type": "json_schema"}, "response_format", "json_schema is required"),
        (
            {"type": "json_object", "json_schema": {"name": "a", "schema": {}}},
            "response_format",
            "only allowed",
        ),
        (
            {"type": "json_schema", "json_schema": {"schema": {}}},
            "response_format.json_schema.name",
            "required",
        ),
        (form({"type": "nothing"}), "response_format", "schema cannot be used"),
        (form({"$ref": "https://example.com/schema.json"}), "response_format", "schema cannot be used"),
        (form({"type": "string", "pattern": "(?=a)b"}), "response_format", "schema cannot be used"),
        (form({"not": {"type": "string"}}), "response_format", "schema cannot be used"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_kept_is_refused(
    endpoint: Endpoint, given: dict[str, Any], param: str, message: str
) -> None:
    settings: dict[str, Any] = {**asked({}), "response_format": given}
    with pytest.raises(openai.BadRequestError) as refused:
        endpoint.openai.chat.completions.create(**settings)

    assert message.lower() in refused.value.message.lower()
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (linked(300), "too many references"),
        (nested(150), "recursion limit"),
        ({"enum": ["a" * 1024] * 129}, "more than 131072 characters"),
        ({"properties": {str(number): {} for number in range(501)}}, "one object may have 500"),
        ({"type": "array", "items": {}, "maxItems": 2**31 - 1}, "more than 100000"),
    ],
    ids=["references", "levels", "characters", "properties", "items"],
)
def test_a_schema_that_could_overflow_the_stack_or_take_long_is_refused(
    endpoint: Endpoint, schema: dict[str, Any], message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        endpoint.openai.chat.completions.create(**asked(schema))


class Scripted:
    """A model that would write one text, token by token."""

    def __init__(self, tokenizer: Any, text: str, stop: int) -> None:
        self._ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], stop]
        self._size = len(tokenizer)

    def logits(self, place: int) -> torch.Tensor:
        logits = torch.zeros(self._size)
        logits[self._ids[min(place, len(self._ids) - 1)]] = 10
        return logits


def written(template: str, text: str, **arguments: Any) -> str:
    """What a model that would write a text writes within CHOICE."""
    tokenizer = tokenizer_with(template, "<think>", "</think>")
    stop = tokenizer.eos_token_id
    assert isinstance(stop, int)
    prompt: Any = tokenizer.apply_chat_template(
        [QUESTION], add_generation_prompt=True, return_dict=False, **arguments
    )
    grammars = Grammars(tokenizer, len(tokenizer), {stop}, AnswerReaders(tokenizer, {}))
    (constraint,) = grammars.constraints(CHOICE, list(prompt), "base", 1)
    model, sampler = Scripted(tokenizer, text, stop), Sampler(0, 1, None)
    ids: list[int] = []
    while stop not in ids:
        token, _ = constraint.choose(sampler, model.logits(len(ids)))
        ids.append(token)
    return str(tokenizer.decode(ids[:-1], skip_special_tokens=False))


OPENS_ITSELF = "{{ messages[0]['content'] }}{% if false %}<think></think>{% endif %}"


@pytest.mark.parametrize(
    ("template", "text", "begins"),
    [
        (THINKS, "it is lost</think>right", "it is lost</think>"),
        (OPENS_ITSELF, "<think>it is lost</think>right", "<think>it is lost</think>"),
        (OPENS_ITSELF, "it is lost", ""),
        (OPENS_ITSELF, "</think>", ""),
        ("{{ messages[0]['content'] }}", "<think>it is lost</think>right", ""),
    ],
)
def test_reasoning_is_free_and_content_is_not(template: str, text: str, begins: str) -> None:
    found = written(template, text)

    assert found.startswith(begins)
    assert found.removeprefix(begins) in ('"left"', '"right"')


def test_a_prompt_that_closes_reasoning_leaves_no_room_for_it() -> None:
    assert written(THINKS, "it is lost</think>right", thinks=False) in ('"left"', '"right"')
