# SPDX-License-Identifier: Apache-2.0
"""Tokenize the prompt of a request, and check that it fits into the context."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.serve.detokenization import AnswerReaders
from finetune_trainer.serve.errors import CONTEXT_LENGTH_EXCEEDED, RequestError
from finetune_trainer.serve.requests import ChatMessage, GenerationRequest
from finetune_trainer.serve.response_formats import MessageReader
from finetune_trainer.serve.tool_calls import TOOL_FORMS, ToolForm, ToolStream, find_tool_form
from finetune_trainer.tokens.chat_template import NONE, TemplateArguments, render
from finetune_trainer.tokens.reasoning import ReasoningStream


class Prompts:
    """Tokenizes prompts. Not thread-safe."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        vocabulary: int,
        template_arguments: Mapping[str, TemplateArguments] = MappingProxyType({}),
        *,
        chat_templates: Mapping[str, str] = MappingProxyType({}),
        readers: AnswerReaders | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """Prepare the prompts of all served models.

        Args:
            tokenizer: tokenizer of all models.
            context_length: max tokens of prompt and answer together.
            vocabulary: size of the vocabulary; token ids are below it.
            template_arguments: default arguments for the chat template, by model name.
            chat_templates: chat templates by model name; other models have the tokenizer's.
            readers: readers of the answers; None for those that fit the templates.
            max_tokens: max tokens of an answer; None for the rest of the context.
        """
        self._tokenizer = tokenizer
        self._readers = readers or AnswerReaders(tokenizer, chat_templates)
        self._templates = chat_templates
        self._arguments = template_arguments
        self._max_tokens = max_tokens
        self._vocabulary = vocabulary
        self.context_length = context_length

    def of_chat(
        self,
        messages: Sequence[ChatMessage],
        model: str,
        arguments: TemplateArguments = NONE,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[int]:
        """Tokenize a conversation with the chat template, as in training, up to the start of the answer.

        The request's arguments for the template replace those of the model one by one.
        """
        if any(message.tool_calls or message.role == "tool" for message in messages):
            self._tool_form(model, "messages")
        turns = tuple(map(_turn, messages))
        try:
            text = render(
                self._tokenizer,
                turns,
                tools=list(tools) or None,
                template=self._templates.get(model),
                add_generation_prompt=True,
                arguments={**self._arguments.get(model, NONE), **arguments},
            )
        # Arguments of a type that the template does not expect raise TypeError.
        except (TemplateError, TypeError, ValueError) as error:
            raise RequestError.invalid(
                f"The model's chat template rejects these messages: {error}", "messages"
            ) from error
        return self._ids(text, add_special_tokens=False)

    def reasoning(self, prompt: list[int], model: str) -> ReasoningStream | None:
        """Separates reasoning from content in the model's answer to a chat.

        None if the chat template of the model has no reasoning.
        """
        reader = self._readers.of(model)
        return (
            None if reader.parser is None else ReasoningStream(reader.parser, is_open=reader.is_open(prompt))
        )

    def message_readers(
        self, prompt: list[int], model: str, tools: Sequence[dict[str, Any]], choices: int
    ) -> list[MessageReader]:
        """A reader for each choice of the answer to a chat.

        Raises RequestError for tools, if the model's chat template does not say how to call them.
        """
        form = self._tool_form(model, "tools") if tools else None
        return [
            MessageReader(self.reasoning(prompt, model), None if form is None else ToolStream(form, tools))
            for _ in range(choices)
        ]

    def _tool_form(self, model: str, field: str) -> ToolForm:
        template = self._templates.get(model) or str(self._tokenizer.get_chat_template(tools=[{}]))
        form = find_tool_form(template)
        if form is None:
            known = ", ".join(each.name for each in TOOL_FORMS)
            raise RequestError.invalid(
                "The chat template of this model has calls of tools in no form that this server reads"
                f" ({known}): send no tools and no calls, or use an endpoint whose engine is VLLM, with"
                " spec.serving.toolCallParser.",
                field,
            )
        return form

    def of_text(self, prompt: str | list[int]) -> list[int]:
        """Tokenize a text, after the tokenizer's beginning-of-text token. Returns token ids unchanged."""
        if isinstance(prompt, str):
            ids = self._ids(prompt, add_special_tokens=True)
            if not ids:
                raise RequestError.invalid("The prompt is empty: give at least one token.", "prompt")
            return ids
        unknown = next((token for token in prompt if token >= self._vocabulary), None)
        if unknown is not None:
            raise RequestError.invalid(
                f"Token id {unknown} is not in the vocabulary: use ids below {self._vocabulary}.", "prompt"
            )
        return prompt

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def answer_tokens(self, prompt: list[int], request: GenerationRequest) -> int:
        """Return the max tokens of the answer. Raises RequestError if prompt or answer do not fit.

        An answer ends at the server's own limit even if the request allows more.
        """
        left = self.context_length - len(prompt)
        field = request.PROMPT_FIELD
        context = f"the context of this model has {self.context_length} tokens, and {field} has {len(prompt)}"
        if left < 1:
            raise RequestError.invalid(
                f"There is no room for an answer: {context}. Shorten {field}.", field, CONTEXT_LENGTH_EXCEEDED
            )
        name, limit = request.limit
        most = left if self._max_tokens is None else min(left, self._max_tokens)
        if limit is None:
            return min(most, request.DEFAULT_TOKENS or most)
        if limit > left:
            raise RequestError.invalid(
                f"{name} is {limit}, but {context}. Set it to at most {left}.", name, CONTEXT_LENGTH_EXCEEDED
            )
        return min(limit, most)


def _turn(message: ChatMessage) -> dict[str, Any]:
    """A message as chat templates read it."""
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.content,
    }
    if reasoning := message.reasoning or message.reasoning_content:
        turn["reasoning_content"] = reasoning
    if message.tool_calls:
        turn["tool_calls"] = [call.for_template() for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn
