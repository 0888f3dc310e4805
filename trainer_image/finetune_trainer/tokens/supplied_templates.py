# SPDX-License-Identifier: Apache-2.0
"""Chat templates for base models without one.

The first whose control tokens are in the model's vocabulary is used:

1. `gemma`: the format of Gemma 1 to 3, <https://ai.google.dev/gemma/docs/core/prompt-structure>, with the
   system turn before the first user turn;
2. `chatml`, as in the base models of Qwen and others;
3. `plain`, for all others: a heading for each turn, and the end-of-sequence token after each answer.
"""

from collections.abc import Callable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

CONTROL_TOKENS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"gemma": ("<start_of_turn>", "<end_of_turn>"), "chatml": ("<|im_start|>", "<|im_end|>"), "plain": ()}
)
"""The supplied templates in the order of the rule, each with the control tokens that it needs."""


def supplied_template(in_vocabulary: Callable[[str], bool]) -> str:
    """The text of the template for a vocabulary."""
    return template_text(
        next(name for name, tokens in CONTROL_TOKENS.items() if all(map(in_vocabulary, tokens)))
    )


def template_text(name: str) -> str:
    """The text of a supplied template."""
    return (resources.files(__package__) / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
