# SPDX-License-Identifier: Apache-2.0
"""Several answers to one prompt, log-probabilities, and comments in streams that wait."""

import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from finetune_trainer.serve import routes
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here, wait_until
from tests.trainer.serve.models import ADAPTERS, Oracle

QUESTION = {"role": "user", "content": "Grüße aus Köln 🙂"}
GREEDY: dict[str, Any] = {"model": "base", "messages": [QUESTION], "temperature": 0, "max_tokens": 12}
SEEDED: dict[str, Any] = {**GREEDY, "temperature": 1.5, "seed": 2**63 - 2}
ENDLESS: dict[str, Any] = {"model": "base", "prompt": "The licence", "max_tokens": 900_000, "temperature": 0}


@pytest.fixture(scope="module")
def narrow(root: Path) -> Iterator[Endpoint]:
    """A server with two slots, whose model never ends an answer."""
    config = serve_config(root, kind="endless", models=(), max_batch_size=2, max_model_length=1_000_000)
    with served_here(config) as endpoint:
        yield endpoint


def content(choice: Any) -> list[Any]:
    return list(choice.logprobs.content)


@pytest.mark.parametrize("model", ["base", ADAPTERS[0]])
def test_logprobs_are_those_of_the_model_alone(endpoint: Endpoint, oracle: Oracle, model: str) -> None:
    prompt = oracle.chat(QUESTION["content"])
    answer = oracle.generate(model, prompt, GREEDY["max_tokens"])
    expected = oracle.logprobs(model, prompt, answer)

    (choice,) = endpoint.openai.chat.completions.create(
        **{**GREEDY, "model": model}, logprobs=True, top_logprobs=3
    ).choices

    found = content(choice)
    assert [each.token for each in found] == [oracle.tokenizer.decode([token]) for token in answer]
    assert [each.logprob for each in found] == pytest.approx(
        [float(row[token]) for row, token in zip(expected, answer, strict=True)], abs=1e-4
    )
    for each, row in zip(found, expected, strict=True):
        best = row.topk(3)
        assert [other.logprob for other in each.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert each.top_logprobs[0].token == each.token
        whole = "\N{REPLACEMENT CHARACTER}" not in each.token
        assert each.bytes == (list(each.token.encode()) if whole else None)


def test_logprobs_are_those_before_temperature_and_need_no_top(endpoint: Endpoint) -> None:
    (greedy,) = endpoint.openai.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=20).choices
    (hot,) = endpoint.openai.chat.completions.create(**SEEDED, logprobs=True, top_logprobs=1).choices
    (none,) = endpoint.openai.chat.completions.create(**GREEDY, logprobs=True).choices

    first = content(greedy)[0].top_logprobs
    assert len(first) == 20
    assert sum(math.exp(each.logprob) for each in first) <= 1 + 1e-5
    assert content(hot)[0].top_logprobs[0].logprob == pytest.approx(first[0].logprob, abs=1e-4)
    assert [each.top_logprobs for each in content(none)] == [[]] * len(content(greedy))


def test_a_stream_has_the_logprobs_of_each_token_once(endpoint: Endpoint) -> None:
    settings = {**GREEDY, "logprobs": True, "top_logprobs": 2, "stop": ["never there"]}
    (whole,) = endpoint.openai.chat.completions.create(**settings).choices

    chunks = list(endpoint.openai.chat.completions.create(**settings, stream=True))

    streamed = [
        each for chunk in chunks for choice in chunk.choices if choice.logprobs for each in content(choice)
    ]
    assert [each.model_dump() for each in streamed] == [each.model_dump() for each in content(whole)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content


def test_greedy_choices_are_equal_and_the_prompt_counts_once(endpoint: Endpoint) -> None:
    one = endpoint.openai.chat.completions.create(**GREEDY)

    three = endpoint.openai.chat.completions.create(**GREEDY, n=3)

    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert {choice.message.content for choice in three.choices} == {one.choices[0].message.content}
    assert one.usage is not None
    assert three.usage is not None
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_seeded_choices_differ_and_are_repeatable_and_the_first_is_that_of_one(endpoint: Endpoint) -> None:
    def texts(**settings: Any) -> list[str | None]:
        answer = endpoint.openai.chat.completions.create(**SEEDED, **settings)
        return [choice.message.content for choice in answer.choices]

    found = texts(n=4)
    assert texts(n=4) == found
    assert len(set(found)) > 1
    assert texts() == found[:1]


@pytest.mark.parametrize("route", ["chat", "completions"])
def test_the_choices_of_a_stream_are_told_by_their_index(endpoint: Endpoint, route: str) -> None:
    settings: dict[str, Any] = {key: value for key, value in SEEDED.items() if key != "messages"}
    create: Any = endpoint.openai.completions.create
    if route == "chat":
        create, settings = endpoint.openai.chat.completions.create, SEEDED
    else:
        settings["prompt"] = "The licence"
    whole = create(**settings, n=3)

    texts: dict[int, str] = defaultdict(str)
    ends: dict[int, list[str]] = defaultdict(list)
    *chunks, last = create(**settings, n=3, stream=True, stream_options={"include_usage": True})
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += (choice.delta.content if route == "chat" else choice.text) or ""
        ends[choice.index] += [choice.finish_reason] if choice.finish_reason else []

    for choice in whole.choices:
        assert texts[choice.index] == (choice.message.content if route == "chat" else choice.text)
        assert ends[choice.index] == [choice.finish_reason]
    assert last.usage == whole.usage


def test_a_client_that_goes_away_frees_the_places_of_all_choices(narrow: Endpoint) -> None:
    with narrow.openai.completions.create(**ENDLESS, n=2, stream=True) as chunks:
        next(iter(chunks))
        assert narrow.metric("finetune_serve_running_requests") == 2

    wait_until(lambda: narrow.metric("finetune_serve_running_requests") == 0)


def test_a_stream_that_waits_has_comments_that_clients_ignore(
    narrow: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "SILENCE_SECONDS", 0.01)
    body: dict[str, Any] = {"model": "base", "prompt": "a", "max_tokens": 2, "temperature": 0, "stream": True}
    lines: list[str] = []
    by_client: list[Any] = []

    def read() -> None:
        with narrow.http.stream("POST", "/v1/completions", json=body) as response:
            lines.extend(response.iter_lines())

    def read_by_client() -> None:
        by_client.extend(narrow.openai.completions.create(**body))

    readers = [threading.Thread(target=read), threading.Thread(target=read_by_client)]
    with narrow.openai.completions.create(**ENDLESS, n=2, stream=True) as chunks:
        next(iter(chunks))
        for reader in readers:
            reader.start()
        wait_until(lambda: ": queued" in lines)
        assert set(lines) == {": queued", ""}
    for reader in readers:
        reader.join()

    assert lines[lines.index("data: [DONE]") :] == ["data: [DONE]", ""]
    assert by_client[-1].choices[0].finish_reason == "length"


def test_more_choices_than_slots_are_refused(narrow: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError, match="at most 2") as refused:
        narrow.openai.completions.create(model="base", prompt="a", n=3)
    assert refused.value.param == "n"
