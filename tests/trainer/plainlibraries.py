# SPDX-License-Identifier: Apache-2.0
"""Published folders as transformers and PEFT use them, without our code."""

from pathlib import Path
from typing import Any, Final

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

MAX_TOKENS: Final = 32


class PlainModel:
    """A whole model, or an adapter with its base model. Answers are greedy."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        folder = adapter or model
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(model)
        if adapter is not None:
            self._model = PeftModel.from_pretrained(self._model, str(adapter))
        self._settings = GenerationConfig.from_pretrained(folder, max_new_tokens=MAX_TOKENS, do_sample=False)

    def prompt(self, question: str) -> list[int]:
        """Token ids of a chat with one question."""
        return list(self._encoded(question)["input_ids"][0].tolist())

    def answer(self, question: str) -> list[int]:
        """Token ids of the answer, with the stop token."""
        prompt = self._encoded(question)
        output = self._model.eval().generate(**prompt, generation_config=self._settings)
        return list(output[0, prompt["input_ids"].shape[1] :].tolist())

    def answer_of_base(self, question: str) -> list[int]:
        """The answer of the base model to the adapter's prompt."""
        with self._model.disable_adapter():
            return self.answer(question)

    def text(self, ids: list[int]) -> str:
        """Text of token ids, without control tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _encoded(self, question: str) -> Any:
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
