# SPDX-License-Identifier: Apache-2.0
"""Settings of the server for requests that do not have their own: limits, deadline, sampling, parser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from finetune_trainer.contract.serving import DefaultSampling
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.detokenization import AnswerReaders
from finetune_trainer.serve.loading import load
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage
from finetune_trainer.tokens.reasoning import find_parser
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here, wait_until
from tools.models import tiny

PROMPT = "The licence"
MAX_TOKENS = 5
DEADLINE_SECONDS = 1
TIMED_OUT = 'finetune_serve_requests_total{code="504",model="base"}'


@pytest.fixture(scope="module")
def limited(root: Path) -> Iterator[Endpoint]:
    """A server of greedy, short answers."""
    config = serve_config(
        root,
        kind="endless",
        models=(),
        max_tokens=MAX_TOKENS,
        default_sampling=DefaultSampling(temperature=0),
    )
    with served_here(config) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def impatient(root: Path) -> Iterator[Endpoint]:
    """A server with a deadline, whose model never ends an answer."""
    config = serve_config(
        root,
        kind="endless",
        models=(),
        max_model_length=1_000_000,
        request_deadline_seconds=DEADLINE_SECONDS,
    )
    with served_here(config) as endpoint:
        yield endpoint


@pytest.mark.parametrize("requested", [{}, {"max_tokens": 50}])
def test_no_answer_has_more_tokens_than_the_server_allows(
    limited: Endpoint, requested: dict[str, Any]
) -> None:
    answer = limited.openai.chat.completions.create(
        model="base", messages=[{"role": "user", "content": PROMPT}], **requested
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == MAX_TOKENS
    assert answer.choices[0].finish_reason == "length"


def test_a_request_may_have_fewer_tokens_than_the_server_allows(limited: Endpoint) -> None:
    answer = limited.openai.completions.create(model="base", prompt=PROMPT, max_tokens=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2


def test_a_request_without_temperature_has_that_of_the_server(limited: Endpoint) -> None:
    def answers(**settings: Any) -> set[str]:
        return {
            limited.openai.completions.create(model="base", prompt=PROMPT, **settings).choices[0].text
            for _ in range(4)
        }

    greedy = answers(temperature=0)
    assert len(greedy) == 1
    assert answers() == greedy
    assert answers(temperature=2) != greedy


def test_an_answer_ends_at_the_deadline_and_frees_its_place(impatient: Endpoint) -> None:
    with pytest.raises(openai.InternalServerError) as error:
        impatient.openai.completions.create(model="base", prompt=PROMPT, max_tokens=900_000, temperature=0)
    assert (error.value.status_code, error.value.code) == (504, "deadline_exceeded")
    wait_until(lambda: impatient.metric("finetune_serve_running_requests") == 0)
    wait_until(lambda: impatient.metric(TIMED_OUT) == 1)


def test_the_deadline_ends_all_choices(impatient: Endpoint) -> None:
    with pytest.raises(openai.InternalServerError) as error:
        impatient.openai.completions.create(
            model="base", prompt=PROMPT, max_tokens=900_000, temperature=0, n=3
        )
    assert error.value.code == "deadline_exceeded"
    wait_until(lambda: impatient.metric("finetune_serve_running_requests") == 0)


def test_a_stream_ends_at_the_deadline_with_an_error(impatient: Endpoint) -> None:
    before = impatient.metric(TIMED_OUT)
    chunks = impatient.openai.completions.create(
        model="base", prompt=PROMPT, max_tokens=900_000, temperature=0, stream=True
    )
    assert next(iter(chunks)).choices[0].finish_reason is None
    with pytest.raises(openai.APIError, match="deadline"):
        list(chunks)
    wait_until(lambda: impatient.metric(TIMED_OUT) == before + 1)


def test_a_short_answer_is_complete_before_the_deadline(impatient: Endpoint) -> None:
    answer = impatient.openai.completions.create(model="base", prompt=PROMPT, max_tokens=1, temperature=0)
    assert answer.choices[0].finish_reason == "length"


def test_the_parser_of_the_server_replaces_that_of_the_template() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    readers = AnswerReaders(tokenizer, {}, find_parser("qwen3"))
    prompts = Prompts(tokenizer, 64, len(tokenizer), readers=readers)
    stream = prompts.reasoning(prompts.of_chat([ChatMessage(role="user", content="Where?")], "base"), "base")
    assert stream is not None
    assert stream.parser.name == "qwen3"


def test_an_unknown_parser_ends_the_server_with_the_names_that_there_are(root: Path) -> None:
    with pytest.raises(StageFailure, match=r"no parser 'qwen9'.*qwen3"):
        load(serve_config(root, reasoning_parser="qwen9"))
