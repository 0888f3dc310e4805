# SPDX-License-Identifier: Apache-2.0
"""Control tokens that occur in the text of rows.

The tokenizer reads such text as the control token itself: a user's `<|im_end|>` ends the turn.
"""

import re

from transformers import PreTrainedTokenizerBase

from finetune_trainer.rows import Row
from finetune_trainer.tokens.reasoning import parser_for


class ControlTokens:
    """Finds the control tokens of one tokenizer in rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        parser = parser_for(tokenizer)
        expected = "" if parser is None else "".join(parser.tags)
        texts = {
            *(str(token) for token in tokenizer.all_special_tokens),
            *(added.content for added in tokenizer.added_tokens_decoder.values() if added.special),
        }
        # Answers with reasoning have its tags.
        found = sorted((text for text in texts if text and text not in expected), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found)) or r"(?!)")

    def first_in(self, row: Row) -> str | None:
        """The first control token in the texts of a row; None if there is none."""
        texts = [*(message.content for message in row.messages), row.rejected or ""]
        return next((match[0] for text in texts if (match := self._pattern.search(text))), None)
