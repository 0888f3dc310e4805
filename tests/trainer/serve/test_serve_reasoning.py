# SPDX-License-Identifier: Apache-2.0
"""Reasoning of an answer gets its own field, as with vLLM's reasoning parsers."""

import json
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.serve.answer import CompleteChoice
from finetune_trainer.serve.detokenization import TextStream
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage
from finetune_trainer.serve.response_formats import ChatFormat
from finetune_trainer.serve.responses import TokenUsage
from finetune_trainer.tokens.reasoning import AnswerReader
from tools.models import tiny

USAGE = TokenUsage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
THINKS = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['reasoning_content'] }}{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if thinks is false %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
HARMONY = "{{ messages[0]['content'] }}<|channel|>analysis<|message|><|return|>"


def stopped(text: str) -> list[CompleteChoice]:
    return [CompleteChoice(text, "stop")]


def tokenizer_with(template: str, *control: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny())
    tokenizer.add_special_tokens({"additional_special_tokens": list(control)})
    tokenizer.chat_template = template
    return tokenizer


def chat_format(prompts: Prompts, model: str = "m", **arguments: Any) -> ChatFormat:
    prompt = prompts.of_chat([ChatMessage(role="user", content="Where?")], model, arguments)
    return ChatFormat(model, prompts.message_readers(prompt, model, (), 1))


def test_whole_and_streamed_answers_have_reasoning_apart_from_content() -> None:
    tokenizer = tokenizer_with(THINKS)
    prompts = Prompts(tokenizer, 64, len(tokenizer))
    text = "It is lost.\n</think>\n\ndispatch"

    whole = json.loads(chat_format(prompts).whole(stopped(text), USAGE).model_dump_json())
    streamed = chat_format(prompts)
    chunks = [streamed.part(0, letter) for letter in text]
    ended = streamed.end(0, "stop")

    message = whole["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("It is lost.", "dispatch")
    assert message["reasoning_content"] == message["reasoning"]
    deltas = [chunk.choices[0].delta for chunk in (*chunks, ended) if chunk is not None]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(str(delta.get(name, "")) for delta in deltas) == "It is lost."
    assert "".join(str(delta.get("content", "")) for delta in deltas) == "dispatch"
    assert all(delta for delta in deltas[:-1]), "chunks without text are not sent"


def test_a_prompt_that_closes_reasoning_leaves_content_only() -> None:
    tokenizer = tokenizer_with(THINKS)
    prompts = Prompts(tokenizer, 64, len(tokenizer))

    whole = chat_format(prompts, thinks=False).whole(stopped("dispatch"), USAGE)

    assert whole.choices[0].message.content == "dispatch"
    assert whole.choices[0].message.reasoning_content == ""


def test_an_answer_of_a_template_without_reasoning_has_no_such_field() -> None:
    tokenizer = tokenizer_with("{{ messages[0]['content'] }}")
    prompts = Prompts(tokenizer, 64, len(tokenizer))

    whole = json.loads(chat_format(prompts).whole(stopped("<think> dispatch"), USAGE).model_dump_json())

    assert whole["choices"][0]["message"] == {
        "role": "assistant",
        "content": "<think> dispatch",
        "refusal": None,
    }


def test_the_reasoning_of_an_adapter_is_that_of_its_own_template() -> None:
    tokenizer = tokenizer_with("{{ messages[0]['content'] }}")
    prompts = Prompts(tokenizer, 64, len(tokenizer), chat_templates={"thinker": THINKS})
    text = "It is lost.\n</think>\n\ndispatch"

    of_adapter = chat_format(prompts, "thinker").whole(stopped(text), USAGE).choices[0].message
    of_base = chat_format(prompts, "base").whole(stopped(text), USAGE).choices[0].message

    assert (of_adapter.reasoning_content, of_adapter.content) == ("It is lost.", "dispatch")
    assert of_base.content == text


def test_tags_that_are_control_tokens_reach_the_parser() -> None:
    tokenizer = tokenizer_with(HARMONY, "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>")
    reader = AnswerReader(tokenizer)
    answer = "<|channel|>analysis<|message|>lost<|end|><|start|>assistant<|channel|>final<|message|>dispatch"
    stream = TextStream(tokenizer, (), reader.text)

    text = "".join(stream.push(token) for token in tokenizer(answer, add_special_tokens=False)["input_ids"])
    prompts = Prompts(tokenizer, 64, len(tokenizer))
    whole = chat_format(prompts).whole(stopped(text + stream.finish()), USAGE)

    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("lost", "dispatch")


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_of_an_earlier_answer_can_be_sent_back(name: str) -> None:
    tokenizer = tokenizer_with(THINKS)
    prompts = Prompts(tokenizer, 64, len(tokenizer))
    answer = ChatMessage.model_validate({"role": "assistant", "content": "dispatch", name: "lost:"})

    ids = prompts.of_chat([ChatMessage(role="user", content="it"), answer], "m")

    assert "<assistant>lost:dispatch" in str(tokenizer.decode(ids))
