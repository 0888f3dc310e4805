# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a row are learned."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.contract.method import Objective
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow, RowEncoder, make_encoder
from finetune_trainer.tokens.rendering import RowNotEncodable
from tools.models import tiny

PAIR = Row.pair("Where is it?", "shipping")
CHAT = Row(
    (
        Message("system", "Name the team."),
        Message("user", "Where is it?"),
        Message("assistant", "shipping"),
        Message("user", "And my money?"),
        Message("assistant", "billing"),
    )
)

MakeTokenizer = Callable[[str], PreTrainedTokenizerBase]


@pytest.fixture
def with_template(tmp_path: Path) -> MakeTokenizer:
    def make(template: str) -> PreTrainedTokenizerBase:
        tokenizer = AutoTokenizer.from_pretrained(tiny())
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path)
        return load_tokenizer(tmp_path)

    return make


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny())


def learned(tokenizer: PreTrainedTokenizerBase, row: EncodedRow) -> str:
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (token, IGNORE_INDEX)
    return str(tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]))


def test_the_completion_and_its_end_are_learned_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    row = RowEncoder(tokenizer).encode(PAIR)

    assert tokenizer.decode(row.input_ids) == "<s><user>Where is it?</s><assistant>shipping</s>"
    assert learned(tokenizer, row) == "shipping</s>"


def test_every_turn_of_the_assistant_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    assert learned(tokenizer, RowEncoder(tokenizer).encode(CHAT)) == "shipping</s>billing</s>"


@pytest.mark.parametrize(
    "text", ["{{ 7 * 7 }}{% for m in messages %}x{% endfor %}", "</s><assistant>billing</s>"]
)
def test_text_of_a_row_is_no_template_and_ends_no_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    row = RowEncoder(tokenizer).encode(Row.pair(text, "shipping"))

    assert tokenizer.decode(row.input_ids) == f"<s><user>{text}</s><assistant>shipping</s>"
    assert learned(tokenizer, row) == "shipping</s>"


def test_a_turn_of_weight_0_is_context_only(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = [*CHAT.messages]
    turns[2] = replace(turns[2], learned=False)

    row = RowEncoder(tokenizer).encode(Row(tuple(turns)))

    assert row.input_ids == RowEncoder(tokenizer).encode(CHAT).input_ids
    assert learned(tokenizer, row) == "billing</s>"


CALL = Row(
    (
        Message("user", "Where is it?"),
        Message("assistant", "", tool_calls='[{"function":{"arguments":{"id":7},"name":"track"}}]'),
        Message("tool", "on its way"),
        Message("assistant", "on its way"),
    ),
    tools='[{"function":{"name":"track"},"type":"function"}]',
)
WITH_TOOLS = (
    "{% for tool in tools or [] %}({{ tool['function']['name'] }}){% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{% for call in m['tool_calls'] or [] %}"
    "{{ call['function']['name'] }} {{ call['function']['arguments']['id'] }}{% endfor %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_call_of_a_tool_is_learned_and_its_answer_is_not(with_template: MakeTokenizer) -> None:
    tokenizer = with_template(WITH_TOOLS)

    row = RowEncoder(tokenizer).encode(CALL)

    assert str(tokenizer.decode(row.input_ids)).startswith("(track)<user>")
    assert learned(tokenizer, row) == "track 7</s>on its way</s>"


def test_a_template_that_writes_no_tools_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        RowNotEncodable, match="omits the tool track; use a base model that supports tool calls"
    ):
        RowEncoder(tokenizer).encode(CALL)


LISTED: Final = (
    "{% for tool in tools or [] %}({{ tool['function']['name'] }} track track){% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>CALLS{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NAME: Final = "{{ m['tool_calls'][0]['function']['name'] }}"


FIRST_CALL: Final = f"{NAME}{{{{ m['tool_calls'][0]['function']['arguments'] | tojson }}}}"


@pytest.mark.parametrize(
    ("written", "numbers", "missing"),
    [
        ("", [7], "a call of track"),
        (NAME, [7], "the argument id of the call of track"),
        (FIRST_CALL, [7, 7], "a call of track"),
    ],
    ids=["no calls", "names only", "first call only"],
)
def test_a_call_that_the_template_omits_is_refused(
    with_template: MakeTokenizer, written: str, numbers: list[int], missing: str
) -> None:
    calls = [{"function": {"name": "track", "arguments": {"id": number}}} for number in numbers]
    row = Row((CALL.messages[0], Message("assistant", "", tool_calls=json.dumps(calls))), tools=CALL.tools)
    written = f"{{% if m['tool_calls'] %}}{written}{{% endif %}}"
    encoder = RowEncoder(with_template(LISTED.replace("CALLS", written)))

    with pytest.raises(RowNotEncodable, match=rf"omits {missing} in messages\[1\]"):
        encoder.encode(row)


@pytest.mark.parametrize(
    "form",
    [
        "{{ a | tojson }}",
        "{{ a | tojson(ensure_ascii=True) }}",
        "{{ a | string }}",
        "{% for name in a %}<{{ name }}>\n{{ a[name] | string | trim }}\n</{{ name }}>{% endfor %}",
        "{% for name, value in a.items() %}{{ name }}={{ value | e }},{% endfor %}",
    ],
    ids=["json", "escaped json", "python", "elements", "html"],
)
def test_a_call_is_found_in_any_notation(with_template: MakeTokenizer, form: str) -> None:
    arguments = {
        "text": ' a "b"\n\t<c> & \\new Köln 𠮷 ',
        "deep": {"x": ["y z", -1.5]},
        "no": None,
        "on": True,
    }
    calls = json.dumps([{"function": {"name": "track", "arguments": arguments}}])
    written = (
        f"{{% if m['tool_calls'] %}}{NAME}"
        f"{{% set a = m['tool_calls'][0]['function']['arguments'] %}}{form}{{% endif %}}"
    )
    tokenizer = with_template(LISTED.replace("CALLS", written))
    row = Row((CALL.messages[0], Message("assistant", "", tool_calls=calls)), tools=CALL.tools)

    assert learned(tokenizer, RowEncoder(tokenizer).encode(row)).startswith("track")


@pytest.mark.parametrize("row", [PAIR, CHAT])
def test_training_begins_with_exactly_the_tokens_that_serving_sees(
    tokenizer: PreTrainedTokenizerBase, row: Row
) -> None:
    encoder = RowEncoder(tokenizer)
    served = tokenizer.apply_chat_template(
        [message.to_dict() for message in row.input], add_generation_prompt=True, return_dict=False
    )

    assert encoder.encode_prompt(row) == served
    assert encoder.encode(row).input_ids[: len(served)] == served


def test_the_beginning_of_the_sequence_is_there_once(tokenizer: PreTrainedTokenizerBase) -> None:
    assert RowEncoder(tokenizer).encode(PAIR).input_ids.count(tokenizer.bos_token_id) == 1


def test_a_prompt_whose_end_would_melt_into_the_answer_stays_as_it_is_served(
    with_template: MakeTokenizer,
) -> None:
    tokenizer = with_template(
        "{{ messages[0]['content'] }} LIC"
        "{% if not add_generation_prompt %}{{ messages[1]['content'] }}{% endif %}"
    )
    prompt = tokenizer("is LIC", add_special_tokens=False)["input_ids"]
    assert tokenizer("is LICENSE of", add_special_tokens=False)["input_ids"][: len(prompt)] != prompt

    row = RowEncoder(tokenizer).encode(Row.pair("is", "ENSE of"))

    assert row.input_ids[: len(prompt)] == prompt
    assert learned(tokenizer, row) == "ENSE of</s>"


def test_the_model_learns_to_stop_where_the_template_writes_no_end(with_template: MakeTokenizer) -> None:
    tokenizer = with_template(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    assert learned(tokenizer, RowEncoder(tokenizer).encode(PAIR)).endswith("</s>")


def test_what_the_template_writes_after_the_last_end_is_left_out(with_template: MakeTokenizer) -> None:
    tokenizer = with_template(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    row = RowEncoder(tokenizer).encode(CHAT)

    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert learned(tokenizer, row) == "shipping</s>billing</s>"


def test_turns_that_a_reasoning_template_rewrites_later_are_context_only(
    with_template: MakeTokenizer,
) -> None:
    tokenizer = with_template(
        "{% for m in messages %}<{{ m['role'] }}>"
        "{% if m['role'] == 'assistant' and loop.last %}(thought){% endif %}"
        "{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )

    assert learned(tokenizer, RowEncoder(tokenizer).encode(CHAT)) == "(thought)billing</s>"


REFUSING = "{{ raise_exception('No system role') if messages[0]['role'] == 'system' }}<assistant>"
ASKING_OTHERWISE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>(thought){% endif %}"
)
FORGETFUL = "<user>{% if not add_generation_prompt %}<assistant></s>{% endif %}"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (REFUSING, "No system role"),
        (ASKING_OTHERWISE, "differently than the prompt"),
        (FORGETFUL, "omits or changes the answer"),
    ],
)
def test_a_row_that_the_template_cannot_write_is_refused_with_the_reason(
    with_template: MakeTokenizer, template: str, complaint: str
) -> None:
    encoder = RowEncoder(with_template(template))

    with pytest.raises(RowNotEncodable, match=complaint):
        encoder.encode(CHAT)


def test_a_cut_row_keeps_its_beginning(tokenizer: PreTrainedTokenizerBase) -> None:
    row = RowEncoder(tokenizer).encode(PAIR)
    length = len(row.input_ids)

    assert row.truncate(length) == row
    assert not row.truncated
    assert row.truncate(length - 1).truncated
    assert row.truncate(length - 1).input_ids == row.input_ids[:-1]
    assert learned(tokenizer, row.truncate(row.prompt_length)) == ""


@pytest.mark.parametrize("objective", ["SFT", "DPO"])
def test_arguments_of_the_template_reach_both_encoders(
    with_template: MakeTokenizer, objective: Objective
) -> None:
    tokenizer = with_template(
        "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}{{ style }}{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{{ style }}{% endif %}"
    )
    row = replace(PAIR, rejected="billing", form="Preference") if objective == "DPO" else PAIR

    encoder = make_encoder(objective, tokenizer, {"style": "short:"})
    encoded = encoder.encode(row)

    if isinstance(encoded, EncodedRow):
        assert str(tokenizer.decode(encoded.input_ids)).endswith("<assistant>short:shipping</s>")
        assert learned(tokenizer, encoded) == "shipping</s>"
    else:
        assert str(tokenizer.decode(encoded.prompt)).endswith("<assistant>short:")
        assert tokenizer.decode(encoded.answer) == "shipping</s>"


FORGETS_THOUGHTS = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_turns_that_are_not_learned_are_counted(with_template: MakeTokenizer) -> None:
    row = RowEncoder(with_template(FORGETS_THOUGHTS)).encode(CHAT)

    assert (row.learned_turns, row.unlearned_turns) == (1, 1)


def test_the_model_learns_to_close_the_reasoning_that_the_prompt_opens(with_template: MakeTokenizer) -> None:
    tokenizer = with_template(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'].split('</think>')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
    )

    row = RowEncoder(tokenizer).encode(PAIR)

    assert learned(tokenizer, row) == "\n</think>\n\nshipping</s>"
    assert row.input_ids[: row.prompt_length] == RowEncoder(tokenizer).encode_prompt(PAIR)


def test_arguments_that_the_template_rejects_end_the_run_by_their_name(with_template: MakeTokenizer) -> None:
    tokenizer = with_template(
        "{{ 'on ' + date if date else '' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )

    with pytest.raises(StageFailure, match=r"chatTemplateKwargs: .* rejects {'date': 5}") as caught:
        RowEncoder(tokenizer, {"date": 5})

    assert caught.value.reason == FailureReason.INVALID_CONFIG
