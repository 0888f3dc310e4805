"""How the answers of each served model are read."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from finetune_trainer.tokens.reasoning import AnswerReader


class AnswerReaders:
    """The reader for each model: that of the chat template with which the model was trained."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_templates: Mapping[str, str]) -> None:
        """`chat_templates`: templates by model name; other models have the tokenizer's."""
        self._default = AnswerReader(tokenizer)
        self._own = {name: AnswerReader(tokenizer, template) for name, template in chat_templates.items()}

    def of(self, model: str) -> AnswerReader:
        """The reader for answers of the model."""
        return self._own.get(model, self._default)
