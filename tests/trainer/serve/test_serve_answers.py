# SPDX-License-Identifier: Apache-2.0
"""Answers, compared with plain transformers and PEFT, which answer one request at a time."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai.types import CompletionUsage

from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tests.trainer.serve.models import ADAPTERS, Oracle

MODELS = ("base", *ADAPTERS)


def test_models_lists_the_base_and_the_adapters_under_it(endpoint: Endpoint) -> None:
    cards = list(endpoint.openai.models.list())

    assert [card.id for card in cards] == list(MODELS)
    assert [card.model_extra and card.model_extra["parent"] for card in cards] == [
        None,
        *["base"] * len(ADAPTERS),
    ]
    assert {card.object for card in cards} == {"model"}
    assert endpoint.openai.models.retrieve(ADAPTERS[0]).id == ADAPTERS[0]


@pytest.mark.parametrize("model", MODELS)
def test_a_chat_is_answered_as_by_the_model_alone(endpoint: Endpoint, oracle: Oracle, model: str) -> None:
    prompt = oracle.chat("Where is my parcel?")
    expected = oracle.generate(model, prompt, 24)

    answer = endpoint.openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Where is my parcel?"}],
        temperature=0,
        max_tokens=24,
    )

    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == oracle.text(expected)
    assert answer.model == model
    assert answer.usage == CompletionUsage(
        prompt_tokens=len(prompt),
        completion_tokens=len(expected),
        total_tokens=len(prompt) + len(expected),
    )


def test_the_models_answer_differently(oracle: Oracle) -> None:
    prompt = oracle.chat("Where is my parcel?")

    assert len({tuple(oracle.generate(model, prompt, 24)) for model in MODELS}) == len(MODELS)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_requests_that_share_batches_are_answered_as_if_alone(root: Path, kind: str) -> None:
    oracle = Oracle(root, kind)
    rng = random.Random(4)  # noqa: S311 - test data
    words = (root / "llama" / "tokenizer.json").read_text(encoding="utf-8").split()
    cases: list[tuple[str, str, int]] = []
    expected: list[str] = []
    while len(cases) < 32:
        model, text = rng.choice(MODELS), " ".join(rng.sample(words, rng.randint(1, 8)))
        limit = rng.randint(1, 40)
        answer = oracle.generate(model, oracle.chat(text), limit)
        # Another batch sums in another order, so a tie of two tokens may have either result.
        if oracle.lead(model, oracle.chat(text), answer) > 1e-3:
            cases.append((model, text, limit))
            expected.append(oracle.text(answer))

    with (
        served_here(serve_config(root, kind=kind, max_batch_size=5)) as served,
        ThreadPoolExecutor(12) as pool,
    ):

        def ask(case: tuple[str, str, int]) -> str | None:
            model, text, limit = case
            answer = served.openai.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": text}],
                temperature=0,
                max_tokens=limit,
            )
            return answer.choices[0].message.content

        assert list(pool.map(ask, cases)) == expected


def test_a_completion_continues_the_text_after_the_beginning_token(
    endpoint: Endpoint, oracle: Oracle
) -> None:
    prompt = oracle.tokenizer("The licence")["input_ids"]
    expected = oracle.text(oracle.generate("base", prompt, 16))

    by_text = endpoint.openai.completions.create(model="base", prompt="The licence", temperature=0)
    by_ids = endpoint.openai.completions.create(model="base", prompt=prompt, temperature=0)

    assert by_text.choices[0].text == by_ids.choices[0].text == expected


@pytest.mark.parametrize("model", MODELS)
def test_a_stream_brings_the_same_text_with_usage_at_its_end(endpoint: Endpoint, model: str) -> None:
    question = {"role": "user", "content": "Grüße aus Köln 🙂"}
    settings: dict[str, Any] = {"model": model, "messages": [question], "temperature": 0, "max_tokens": 40}
    whole = endpoint.openai.chat.completions.create(**settings)

    chunks = list(
        endpoint.openai.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )

    *parts, last = chunks
    assert parts[0].choices[0].delta.role == "assistant"
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in parts) == whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in parts if chunk.choices[0].finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert last.choices == []
    assert last.usage == whole.usage
    assert {chunk.id for chunk in chunks} == {last.id}


def test_a_streamed_completion_ends_with_done_and_without_usage_unless_asked(endpoint: Endpoint) -> None:
    body: dict[str, Any] = {"model": "base", "prompt": "The licence", "temperature": 0, "max_tokens": 5}
    whole = endpoint.openai.completions.create(**body)

    with endpoint.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        lines = [line for line in response.iter_lines() if line]

    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "data: [DONE]"
    chunks = list(endpoint.openai.completions.create(**body, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert all(chunk.usage is None for chunk in chunks)


def test_the_text_ends_before_a_stop_string(endpoint: Endpoint) -> None:
    settings: dict[str, Any] = {"model": "base", "prompt": "The licence", "temperature": 0, "max_tokens": 40}
    text = endpoint.openai.completions.create(**settings).choices[0].text
    stop = text[7:10]

    stopped = endpoint.openai.completions.create(**settings, stop=["never there", stop])
    streamed = list(endpoint.openai.completions.create(**settings, stop=stop, stream=True))

    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert "".join(chunk.choices[0].text for chunk in streamed) == stopped.choices[0].text


def test_the_length_ends_an_answer_at_max_tokens_and_at_the_end_of_the_context(
    endpoint: Endpoint, oracle: Oracle
) -> None:
    limited = endpoint.openai.completions.create(model="base", prompt="a", max_tokens=3, temperature=0)
    filled = endpoint.openai.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "a"}], temperature=0
    )

    assert limited.choices[0].finish_reason == "length"
    assert limited.usage is not None
    assert limited.usage.completion_tokens == 3
    assert filled.usage is not None
    expected = oracle.generate("base", oracle.chat("a"), 512 - filled.usage.prompt_tokens)
    assert filled.usage.completion_tokens == len(expected)


def test_sampling_is_repeatable_by_its_seed_and_varies_without_one(endpoint: Endpoint) -> None:
    def sample(seed: int | None) -> str:
        answer = endpoint.openai.completions.create(
            model="base", prompt="The licence", max_tokens=24, temperature=1.5, top_p=0.95, seed=seed
        )
        return answer.choices[0].text

    assert sample(7) == sample(7)
    assert len({sample(None) for _ in range(5)}) > 1


def test_system_and_developer_messages_and_text_parts_reach_the_template(endpoint: Endpoint) -> None:
    def ask(*messages: object) -> object:
        answer = endpoint.http.post(
            "/v1/chat/completions",
            json={"model": "base", "messages": messages, "temperature": 0, "max_tokens": 12},
        ).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]

    user = {"role": "user", "content": "Hello there"}
    parts = {
        "role": "user",
        "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}],
    }
    system = {"role": "system", "content": "Be brief."}

    assert ask(parts) == ask(user)
    assert ask(system, user) == ask({**system, "role": "developer"}, user)
    assert ask(system, user) != ask(user)


def test_an_earlier_answer_can_be_sent_back_as_it_came(endpoint: Endpoint) -> None:
    first = endpoint.openai.chat.completions.create(
        model="base", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )

    second = endpoint.http.post(
        "/v1/chat/completions",
        json={
            "model": "base",
            "max_tokens": 4,
            "messages": [
                {"role": "user", "content": "Hello"},
                first.choices[0].message.model_dump(),
                {"role": "user", "content": "And then?"},
            ],
        },
    )

    assert second.status_code == 200, second.text
