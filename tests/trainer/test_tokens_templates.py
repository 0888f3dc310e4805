# SPDX-License-Identifier: Apache-2.0
"""What is learned, accepted and served with the published templates of model families.

`make golden` writes `tests/trainer/data/templates.txt` anew, for review. The templates are TRL's copies of
them; the tokenizer is a small one with the control tokens of each template.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Final

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.data.split_files import line_of
from finetune_trainer.rows import Message, Row, parse_row
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatCompletionRequest
from finetune_trainer.tokens import chat_template
from finetune_trainer.tokens.chat_template import stop_token_ids, training_template
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow, RowEncoder
from finetune_trainer.tokens.reasoning import AnswerReader
from finetune_trainer.tokens.rendering import RowNotEncodable
from tests.trainer.data.reading import json_lines, read
from tools.models import tiny

GOLDEN: Final = Path(__file__).parent / "data" / "templates.txt"
CONTROL: Final = re.compile(
    r"<\|[\w▁/]+\|?>|<\|?[\w▁/]+\|>|<[a-z]+_of_turn>|<｜[^｜]+｜>|\[/?[A-Za-z_]+\]|<[A-Z_]{4,}>|<end_of_utterance>"
)
"""Texts in templates that are control tokens of their models. `<think>` is an ordinary token there."""


class FirstOfJanuary(datetime):
    """Templates write the date of today."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "FirstOfJanuary":
        """The first of January 2026."""
        return cls(2026, 1, 1, tzinfo=tz)


TOOLS: Final = '[{"function":{"description":"Find it","name":"find","parameters":{}},"type":"function"}]'
CALLS: Final = '[{"function":{"arguments":{"id":7},"name":"find"},"type":"function"}]'
TURNS: Final = (
    Message("user", "Where?"),
    Message("assistant", "dispatch"),
    Message("user", "Money?"),
    Message("assistant", "billing"),
)
ROWS: Final = {
    "one turn": Row(TURNS[:2]),
    "two turns": Row(TURNS),
    "system": Row((Message("system", "Route it."), *TURNS[:2])),
    "tools": Row(
        (
            Message("user", "Where?"),
            Message("assistant", "", tool_calls=CALLS),
            Message("tool", "here", name="find"),
            Message("assistant", "dispatch"),
        ),
        tools=TOOLS,
    ),
    "call": Row((Message("user", "Where?"), Message("assistant", "", tool_calls=CALLS)), tools=TOOLS),
    "weight 0": Row((TURNS[0], replace(TURNS[1], learned=False), *TURNS[2:])),
    "reasoning": Row((TURNS[0], Message("assistant", "<think>\nIt is lost.\n</think>\n\ndispatch"))),
}


def published() -> dict[str, str]:
    """TRL's copies of published templates, by family."""
    return {
        path.stem: path.read_text(encoding="utf-8")
        for path in sorted(chat_template.trl_templates_folder().glob("*.jinja"))
        if not path.stem.endswith("_training")
    }


def tokenizer_with(template: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(set(CONTROL.findall(template)))})
    tokenizer.chat_template = template
    return tokenizer


def learned(row: EncodedRow) -> Iterator[list[int]]:
    """The learned tokens, turn by turn."""
    turn: list[int] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        if label != IGNORE_INDEX:
            turn.append(token)
        elif turn:
            yield turn
            turn = []
    yield turn


def described(family: str, template: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    tokenizer = tokenizer_with(template)
    encoder = RowEncoder(tokenizer, arguments)
    reader = AnswerReader(tokenizer)
    parser = "none" if reader.parser is None else reader.parser.name
    with_arguments = "".join(f", {name} {str(value).lower()}" for name, value in arguments.items())
    yield f"{family}{with_arguments}: reasoning parser {parser}"
    for name, row in ROWS.items():
        try:
            encoded, prompt = encoder.encode(row), encoder.encode_prompt(row)
        except RowNotEncodable as error:
            yield f"  {name}: refused: {error}"
            continue
        turns = list(learned(encoded))
        history = "" if encoded.input_ids[: len(prompt)] == prompt else ", history other than served"
        missing = f", not learned: {encoded.unlearned_turns}" if encoded.unlearned_turns else ""
        yield f"  {name}{history}{missing}"
        yield f"    prompt ends  {tokenizer.decode(prompt)[-32:]!r}"
        for turn in turns:
            yield f"    learned      {tokenizer.decode(turn)!r}"
        if row.messages[-1].tool_calls is not None:
            continue
        content = reader.content(prompt, turns[-1])
        verdict = "" if reader.reference(row.output) == content else "  DIFFERS"
        yield f"    accepted     {reader.reference(row.output)!r}"
        yield f"    served       {content!r}{verdict}"


def test_published_templates_are_learned_accepted_and_served_as_the_golden_file_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", FirstOfJanuary)
    lines: list[str] = []
    for family, template in published().items():
        variants: list[dict[str, Any]] = [{}]
        if "enable_thinking" in template:
            variants.append({"enable_thinking": False})
        for arguments in variants:
            try:
                lines += described(family, template, arguments)
            except Exception as error:  # noqa: BLE001 - templates of multimodal models take other content
                lines.append(f"{family}: takes no text: {type(error).__name__}")
    text = "\n".join(lines) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "run `make golden` and review the changes"


SOURCE_TOOLS: Final = [
    {
        "type": "function",
        "function": {
            "name": "lookup_bag",
            "description": "Finds a piece by its tag.",
            "parameters": {
                "type": "object",
                "properties": {"zone": {"type": "string"}, "tag": {"type": "string", "default": None}},
                "required": ["tag"],
            },
            "strict": True,
        },
    }
]


@pytest.mark.parametrize(
    ("family", "end"),
    [("gptoss", "<|call|>"), ("gemma4", "<|tool_response>"), ("glm4moe", "<|observation|>")],
)
def test_an_answer_with_calls_ends_at_the_token_that_ends_calls(family: str, end: str) -> None:
    tokenizer = tokenizer_with(published()[family])

    (answer,) = learned(RowEncoder(tokenizer).encode(ROWS["call"]))

    assert tokenizer.decode(answer[-1:]) == end
    assert answer[-1] in stop_token_ids(tokenizer, None)


PRINTING_TOOLS: Final = ("glm4moe", "lfm2_2_5_v2", "llama3_1", "muse_glimmer", "qwen2_5", "qwen3", "qwen3_6")
"""Families whose templates print tools as JSON, and calls as JSON or in elements of XML."""


@pytest.mark.parametrize("family", PRINTING_TOOLS)
def test_a_prepared_row_has_the_prompt_of_a_request_with_the_tools_of_its_source(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", FirstOfJanuary)
    call = {"name": "lookup_bag", "arguments": {"zone": "north", "tag": "KX204"}}
    question = {"role": "user", "content": "Where?"}
    answer = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    (read_row,) = read(tmp_path, json_lines([{"messages": [question, answer], "tools": SOURCE_TOOLS}])).rows
    row = parse_row(line_of(read_row).decode())
    tokenizer = tokenizer_with(published()[family])
    encoder = RowEncoder(tokenizer)
    request = ChatCompletionRequest.model_validate_json(
        json.dumps({"model": "base", "messages": [question], "tools": SOURCE_TOOLS})
    )

    served = Prompts(tokenizer, 4096, len(tokenizer)).of_chat(
        request.messages, "base", tools=request.offered_tools
    )

    assert tokenizer.decode(encoder.encode_prompt(row)) == tokenizer.decode(served)
    assert encoder.encode_prompt(row) == served
    (answered,) = learned(encoder.encode(row))
    text = tokenizer.decode(answered)
    assert 0 < text.index("zone") < text.index("north") < text.index("tag") < text.index("KX204")


def test_the_training_templates_are_those_that_trl_chooses() -> None:
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    compared = 0
    for family, template in published().items():
        if has_generation_markers(template):
            assert training_template(template) == template
            continue
        try:
            chosen = get_training_chat_template(tokenizer_with(template))
        except ValueError:
            chosen = None
        assert training_template(template) == chosen, family
        compared += chosen is not None
    assert compared > 20
