# SPDX-License-Identifier: Apache-2.0
"""How the answers of each served model are read."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from finetune_trainer.tokens.reasoning import AnswerReader, ReasoningParser


class AnswerReaders:
    """The reader for each model: that of the chat template with which the model was trained."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat_templates: Mapping[str, str],
        parser: ReasoningParser | None = None,
    ) -> None:
        """Make the readers.

        Args:
            tokenizer: tokenizer of all models.
            chat_templates: templates by model name; other models have the tokenizer's.
            parser: parser of the reasoning of all models; None for those that fit the templates.
        """
        self._default = AnswerReader(tokenizer, parser=parser)
        self._own = {
            name: AnswerReader(tokenizer, template, parser) for name, template in chat_templates.items()
        }

    def of(self, model: str) -> AnswerReader:
        """The reader for answers of the model."""
        return self._own.get(model, self._default)
