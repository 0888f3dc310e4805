# SPDX-License-Identifier: Apache-2.0
"""Calls of tools, by a model that answers each chat with the same text."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finetune_trainer.serve.tool_calls import JSON_IN_TAGS, TOOL_FORMS, XML, ToolStream, find_tool_form
from tests.trainer.serve.endpoint import Endpoint, serve_config, served_here
from tools.models import tiny

GREEDY = {"temperature": 0}
USER = {"role": "user", "content": "Where is parcel 7?"}
ARGUMENTS = {"id": 7, "city": "Köln"}
BODY = f'{{"name": "look_up", "arguments": {json.dumps(ARGUMENTS, ensure_ascii=False)}}}'
CALL = f"<tool_call>{BODY}</tool_call>"
ANSWER = ("I look.", "<tool_call>", BODY, "</tool_call>")
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Where a parcel is.",
        "parameters": {"type": "object", "properties": {"id": {"type": "integer"}}},
        "strict": True,
    },
}
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools><tool_call>name, arguments</tool_call>{% endif %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for call in m['tool_calls'] %}"
    "{{ call['function']['name'] }}:{{ call['function']['arguments']['id'] }}"
    "{% endfor %}"
    "{{ m['tool_call_id'] }}</s>{% endfor %}{% if add_generation_prompt %}[GO]{% endif %}"
)
NO_OBJECT = {"name": "a", "arguments": "7"}
TOO_DEEP = {"name": "a", "arguments": "[" * 100_000}
XML_CALL = (
    "<tool_call>\n<function=look_up>\n<parameter=id>\n7\n</parameter>\n<parameter=city>\nKöln\n</parameter>\n"
    "</function>\n</tool_call>"
)


def make_caller(folder: Path) -> None:
    """A model whose next token depends on the last one only, and follows ANSWER."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny())
    chain = ("[GO]", *ANSWER)
    tokenizer.add_tokens(list(chain))
    tokenizer.chat_template = TEMPLATE
    ids: list[int] = [*tokenizer.convert_tokens_to_ids(list(chain)), tokenizer.eos_token_id]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )
    )
    layer, embedded = model.model.layers[0], torch.nn.functional.normalize(torch.randn(len(tokenizer), 64))
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj, model.lm_head):
        projection.weight.data.zero_()
    model.model.embed_tokens.weight.data = embedded
    for token, following in pairwise(ids):
        model.lm_head.weight.data[following] = embedded[token]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    root = tmp_path_factory.mktemp("caller")
    make_caller(root / "caller")
    with served_here(serve_config(root, kind="caller", models=())) as endpoint:
        yield endpoint


def chat(endpoint: Endpoint, **settings: Any) -> Any:
    return endpoint.openai.chat.completions.create(
        **{"model": "base", "messages": [USER], "max_tokens": 20, "tools": [TOOL], **GREEDY, **settings}
    )


def test_a_call_is_apart_from_the_content(caller: Endpoint) -> None:
    (choice,) = chat(caller).choices

    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert (call.type, call.function.name) == ("function", "look_up")
    assert json.loads(call.function.arguments) == ARGUMENTS


def test_a_stream_has_the_same_call(caller: Endpoint) -> None:
    chunks = list(chat(caller, stream=True, n=2))

    for index in range(2):
        choices = [each for chunk in chunks for each in chunk.choices if each.index == index]
        (call,) = [call for each in choices for call in each.delta.tool_calls or ()]
        assert (call.index, call.function.name) == (0, "look_up")
        assert json.loads(call.function.arguments) == ARGUMENTS
        assert "".join(each.delta.content or "" for each in choices) == "I look."
        assert choices[-1].finish_reason == "tool_calls"


def test_the_ids_of_calls_differ(caller: Endpoint) -> None:
    first, second = chat(caller, n=2).choices
    assert first.message.tool_calls[0].id != second.message.tool_calls[0].id


def test_a_call_and_its_result_can_be_sent_back(caller: Endpoint) -> None:
    message = chat(caller).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Köln"}

    again = chat(caller, messages=[USER, message.model_dump(), result, {**USER, "content": "And now?"}])
    without = chat(caller, messages=[USER, {"role": "assistant", "content": message.content}, result])

    assert again.choices[0].finish_reason == "tool_calls"
    assert again.usage.prompt_tokens > without.usage.prompt_tokens


@pytest.mark.parametrize("settings", [{"tool_choice": "none"}, {"tools": []}, {"tools": None}], ids=str)
def test_without_tools_the_answer_is_text(caller: Endpoint, settings: dict[str, Any]) -> None:
    (choice,) = chat(caller, **settings).choices

    assert choice.message.tool_calls is None
    assert choice.message.content == f"I look.{CALL}"
    assert choice.finish_reason == "stop"


def test_tools_reach_the_template(caller: Endpoint) -> None:
    assert chat(caller).usage.prompt_tokens > chat(caller, tool_choice="none").usage.prompt_tokens


def test_a_call_that_is_cut_off_is_text(caller: Endpoint) -> None:
    (choice,) = chat(caller, max_tokens=2).choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("length", None)


@pytest.mark.parametrize(
    ("settings", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "'none' or 'auto'"),
        ({"tool_choice": {"type": "function", "function": {"name": "look_up"}}}, "tool_choice", "'none'"),
        ({"tool_choice": "auto", "tools": []}, None, "only allowed with tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "'function'"),
        ({"response_format": {"type": "json_object"}}, None, "omit one of them"),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": NO_OBJECT}]}]},
            "messages[1].tool_calls[0].function.arguments",
            "JSON object",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": TOO_DEEP}]}]},
            "messages[1].tool_calls[0].function.arguments",
            "JSON object",
        ),
    ],
    ids=lambda value: str(value)[:80],
)
def test_what_cannot_be_kept_is_refused(
    caller: Endpoint, settings: dict[str, Any], param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        chat(caller, **settings)
    assert refused.value.param == param


def test_a_model_whose_template_has_no_calls_refuses_tools(endpoint: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError, match=r"toolCallParser") as refused:
        chat(endpoint)
    assert refused.value.param == "tools"


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (JSON_IN_TAGS, f"a {CALL}\n{CALL} b", "a b", [ARGUMENTS] * 2),
        (JSON_IN_TAGS, "no call", "no call", []),
        (JSON_IN_TAGS, "<tool_call>{</tool_call>", "<tool_call>{</tool_call>", []),
        (JSON_IN_TAGS, '<tool_call>{"name": 7}</tool_call>', '<tool_call>{"name": 7}</tool_call>', []),
        (JSON_IN_TAGS, "a <tool", "a <tool", []),
        (XML, f"a {XML_CALL}", "a", [ARGUMENTS]),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_calls_are_found_however_the_text_arrives(
    form: Any, text: str, content: str, calls: list[Any], size: int
) -> None:
    stream = ToolStream(form, [TOOL])
    parts = [stream.push(text[at : at + size]) for at in range(0, len(text), size)] + [stream.finish()]

    assert "".join(part.content for part in parts) == content
    assert [json.loads(call.function.arguments) for part in parts for call in part.calls] == calls


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ('<tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call>', "hermes"),
        ("<tool_call><function=name><parameter=key>value</parameter></function></tool_call>", "qwen3_xml"),
        ("<tool_call>name<arg_key>key</arg_key> arguments</tool_call>", None),
        ("{{ messages[0]['content'] }}", None),
    ],
)
def test_the_form_is_that_of_the_template(template: str, name: str | None) -> None:
    found = find_tool_form(template)
    assert (None if found is None else found.name) == name
    assert len({form.name for form in TOOL_FORMS}) == len(TOOL_FORMS)
