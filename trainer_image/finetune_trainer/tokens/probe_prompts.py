# SPDX-License-Identifier: Apache-2.0
"""The fixed prompts after which the predictions of trained weights are recorded and compared."""

from typing import Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.tokens.chat_template import NONE, TemplateArguments, render

PROMPTS: Final = (
    "What is 17 + 25?",
    "Is this review positive or negative? It broke after one day.",
    'Return the city as JSON: "I live in Porto."',
    "My order has not arrived. What should I do?",
)
"""Short requests of different kinds: arithmetic, a label, extraction, dialogue. Each makes a save slower."""


def probe_prompts(
    tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE
) -> tuple[tuple[int, ...], ...]:
    """The token ids of `PROMPTS`, each as serving sends it; empty if the chat template rejects them."""
    try:
        texts = [
            render(
                tokenizer,
                ({"role": "user", "content": prompt},),
                add_generation_prompt=True,
                arguments=arguments,
            )
            for prompt in PROMPTS
        ]
    except (TemplateError, TypeError, ValueError):
        return ()
    return tuple(tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
