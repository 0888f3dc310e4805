# SPDX-License-Identifier: Apache-2.0
"""Control sequences of chat templates in texts: a tokenizer reads them as marks of turns, not as text."""

import re
from typing import Final

from finetune_trainer.data.checks.prefilter import Expressions
from finetune_trainer.data.rowproblems import Code, Issue

SEQUENCES: Final = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|begin_of_text|end_of_text|start_header_id|end_header_id|eot_id|eom_id"
    r"|system|user|assistant|end|start|return|channel|message|call)\|>"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>|\[/?(?:TOOL_CALLS|AVAILABLE_TOOLS)\]"
)
"""Control sequences of ChatML (Qwen), Llama, Phi, Gemma, Mistral and gpt-oss, as in their tokenizers."""
EXPRESSIONS: Final[Expressions] = ((SEQUENCES.pattern,),)


def sequence_issue(text: str, column: str) -> Issue | None:
    """A warning about the first control sequence in a text."""
    found = SEQUENCES.search(text)
    if found is None:
        return None
    return Issue(
        Code.CONTROL_SEQUENCE,
        f"{column} has {found[0]}, which a model reads as the end or beginning of a turn,"
        f" at character {found.start() + 1}",
        "text without control sequences",
        "remove it, or write the turns as messages",
        column=column,
        severity="warning",
    )
