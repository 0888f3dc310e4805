# SPDX-License-Identifier: Apache-2.0
"""Arguments for the chat template: those of the served model, and those of a request."""

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatCompletionRequest, ChatMessage
from tests.trainer.serve.endpoint import Endpoint
from tools.models import tiny

TEMPLATE = "{{ messages[0]['content'] }}{{ style }}{{ effort }}{% if add_generation_prompt %}:{% endif %}"


def test_a_request_replaces_the_arguments_of_the_model_one_by_one() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    tokenizer.chat_template = TEMPLATE
    prompts = Prompts(tokenizer, 64, len(tokenizer), {"tickets": {"style": "a", "effort": "b"}})
    question = [ChatMessage(role="user", content="it")]

    def served(model: str, **arguments: str) -> str:
        return str(tokenizer.decode(prompts.of_chat(question, model, arguments)))

    assert served("tickets") == "itab:"
    assert served("tickets", effort="c") == "itac:"
    assert served("base") == "it:"
    assert served("base", effort="c") == "itc:"


def test_arguments_are_scalars_and_none_of_them_is_the_servers_own() -> None:
    def request(**arguments: object) -> ChatCompletionRequest:
        body = {"model": "m", "messages": [{"role": "user", "content": "it"}]}
        return ChatCompletionRequest.model_validate({**body, "chat_template_kwargs": arguments})

    assert request(thinks=False, effort="low").chat_template_kwargs == {"thinks": False, "effort": "low"}
    for arguments in ({"tokenize": True}, {"effort": ["low"]}, {str(each): 1 for each in range(17)}):
        with pytest.raises(ValidationError):
            request(**arguments)


def test_the_openai_client_sends_arguments_as_it_does_to_vllm(endpoint: Endpoint) -> None:
    answer = endpoint.openai.chat.completions.create(
        model="base",
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=2,
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )

    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_an_argument_that_the_template_cannot_use_is_the_mistake_of_the_request() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    tokenizer.chat_template = "{{ 'on ' + date }}{{ messages[0]['content'] }}"
    prompts = Prompts(tokenizer, 64, len(tokenizer))

    with pytest.raises(RequestError) as refused:
        prompts.of_chat([ChatMessage(role="user", content="it")], "base", {"date": 5})

    assert refused.value.status == 400
