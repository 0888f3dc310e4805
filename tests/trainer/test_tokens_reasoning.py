# SPDX-License-Identifier: Apache-2.0
"""Reasoning and content of an answer, whole and in pieces."""

import pytest

from finetune_trainer.contract.serving import REASONING_PARSERS
from finetune_trainer.tokens.reasoning import PARSERS, Parts, ReasoningStream

BY_NAME = {parser.name: parser for parser in PARSERS}
HARMONY = (
    "<|channel|>analysis<|message|>We route.\n<|end|><|start|>assistant<|channel|>final<|message|>dispatch"
)

MUSE = " to=self<|message|>We route.<|eom|><|start|>assistant to=user<|message|>dispatch<|eot|>"


@pytest.mark.parametrize(
    ("name", "answer", "is_open", "reasoning", "content"),
    [
        ("qwen3", "<think>\n\n</think>\n\ndispatch", False, "", "dispatch"),
        (
            "qwen3",
            "<think>\nIt is\n\nlost.\n</think>\n\nto dispatch \n",
            False,
            "It is\n\nlost.",
            "to dispatch \n",
        ),
        ("qwen3", "\n</think>\n\ndispatch", True, "", "dispatch"),
        ("qwen3", "It is lost.\n</think>\n\ndispatch", True, "It is lost.", "dispatch"),
        ("qwen3", "It is lo", True, "It is lo", ""),
        ("qwen3", "dispatch, <think> or not", False, "", "dispatch, <think> or not"),
        ("qwen3", "  dispatch", False, "", "  dispatch"),
        ("qwen3", "  <thi", False, "", "  <thi"),
        ("glm45", "\n<think></think>\ndispatch", False, "", "dispatch"),
        ("gemma4", "<|channel>thought\nIt is lost.\n<channel|>dispatch", False, "It is lost.", "dispatch"),
        ("muse_glimmer", " to=user<|message|>dispatch<|eot|>", False, "", "dispatch"),
        ("muse_glimmer", MUSE, False, "We route.", "dispatch"),
        ("openai_gptoss", HARMONY, False, "We route.", "dispatch"),
        ("openai_gptoss", "<|channel|>final<|message|>dispatch<|return|>", False, "", "dispatch"),
        ("openai_gptoss", "dispatch", False, "", "dispatch"),
    ],
)
def test_pieces_of_any_length_make_the_same_parts(
    name: str, answer: str, is_open: bool, reasoning: str, content: str
) -> None:
    parser = BY_NAME[name]
    assert parser.split(answer, is_open=is_open) == Parts(reasoning, content)

    for length in (1, 2, 3, 7):
        stream = ReasoningStream(parser, is_open=is_open)
        parts = [stream.push(answer[at : at + length]) for at in range(0, len(answer), length)]
        parts.append(stream.finish())
        assert "".join(part.reasoning for part in parts) == reasoning
        assert "".join(part.content for part in parts) == content


def test_the_operator_knows_the_parsers_by_their_names() -> None:
    assert tuple(parser.name for parser in PARSERS) == REASONING_PARSERS
