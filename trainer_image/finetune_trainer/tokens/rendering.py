# SPDX-License-Identifier: Apache-2.0
"""Renders rows with the chat template, and finds the text that the model generates in each assistant turn.

A turn begins where its prompt ends: the prompt is what serving sends, so the model learns to continue it.
Text that the template writes before the answer, such as an empty `<think>` block, is learned unless the
prompt has it already, because the model must generate it.

Three renderings are tried, in this order. The first one with all turns to learn is used:

1. the marked training template, if it renders the prompt of the last answer as serving does;
2. the model's own template: a turn is the text between its prompt and the end of its conversation;
3. the marked training template. Templates of reasoning models drop the reasoning of earlier turns, so no
   conversation has such a turn as the model generates it. The training template keeps the reasoning, and the
   history of later turns then has reasoning blocks that serving omits.

If none has all of them, the one with most of them is used, and the other turns are context only.

A rendered conversation is checked for the tools and the calls of its row. Templates write calls as JSON, as
elements of XML, or as text of their own. In all of these notations names and values have the same letters and
digits, so only these are compared.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import unescape
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.chat_template import (
    NONE,
    TemplateArguments,
    render,
    render_marked,
    training_template,
)
from finetune_trainer.tokens.reasoning import ReasoningParser, parser_for

Span = tuple[int, int]
"""Start and end in characters."""


class RowNotEncodable(Exception):
    """The chat template cannot render this row; the message says why."""


@dataclass(frozen=True)
class Rendering:
    """A finished conversation as text."""

    text: str
    spans: dict[int, Span]
    """What the model generates in the assistant turns that were found, by their index."""

    def has(self, turns: list[int]) -> bool:
        """Whether all these turns were found."""
        return all(turn in self.spans for turn in turns)


class RowRenderer:
    """Renders rows with one tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE) -> None:
        self._tokenizer = tokenizer
        self._arguments = arguments
        self.parser: ReasoningParser | None = parser_for(tokenizer)
        template = str(tokenizer.get_chat_template())
        self._training = training_template(template)
        self._takes_reasoning = "reasoning_content" in template

    def prompt(self, row: Row) -> str:
        """The prompt for the last answer, as serving sends it. Raises RowNotEncodable."""
        return self._prompt(row, len(row.input))

    def finished(self, row: Row, learned: list[int]) -> Rendering:
        """The conversation with the turns to learn; the last turn is one of them. Raises RowNotEncodable."""
        prompt, last = self.prompt(row), len(row.messages) - 1
        marked = self._marked(row, prompt)
        if marked is not None and marked.text.startswith(prompt) and marked.has(learned):
            return marked
        own = self._own(row, prompt, learned)
        best = own
        if marked is not None and len(marked.spans.keys() & learned) > len(own.spans.keys() & learned):
            best = marked
        if last not in best.spans:
            if self.parser is not None and self.parser.split(row.output).reasoning:
                raise RowNotEncodable(
                    f"the answer has reasoning ({self.parser.open.strip()}), but the prompt that serving"
                    " sends leaves no room for it; remove the reasoning, or the argument of"
                    " chatTemplateKwargs that turns it off"
                )
            raise RowNotEncodable(
                "the chat template renders the finished conversation differently than the prompt for the"
                " answer, so training would not match serving; give the base model another"
                " chat_template.jinja"
            )
        return best

    def _own(self, row: Row, prompt: str, learned: list[int]) -> Rendering:
        """The conversation by the model's own template."""
        text, last = self._text(row, len(row.messages)), len(row.messages) - 1
        opened = self._opened(prompt)
        if not text.startswith(prompt) and opened and text.startswith(prompt.removesuffix(opened)):
            # The prompt opens reasoning, and the finished turn has none: the model must close it first.
            answer = self._without_empty_reasoning(text[len(prompt) - len(opened) :])
            text = f"{prompt}{self._closing()}{answer}"
        spans = {last: (len(prompt), len(text))} if text.startswith(prompt) else {}
        for turn in learned:
            if turn == last:
                continue
            begin, end = self._prompt(row, turn), self._text(row, turn + 1)
            if text.startswith(begin) and end.startswith(begin) and text.startswith(end):
                spans[turn] = (len(begin), len(end))
        return Rendering(text, spans)

    def _marked(self, row: Row, prompt: str) -> Rendering | None:
        """The conversation by the training template; None without one, or if it does not fit the row."""
        # Of named templates, the one for tools may be another.
        has_variants = isinstance(self._tokenizer.chat_template, dict)
        if self._training is None or (has_variants and row.tools is not None):
            return None
        try:
            return self._with_parts(row, prompt)
        except RowNotEncodable:
            return None

    def _with_parts(self, row: Row, prompt: str) -> Rendering | None:
        turns = [turn for turn, message in enumerate(row.messages) if message.role == "assistant"]
        opened, closed = self._opened(prompt), ""
        text, parts = self._render_marked(row, len(row.messages), closed)
        if opened and not text.startswith(prompt):
            closed = f"{opened}{self._closing()}"
            text, parts = self._render_marked(row, len(row.messages), closed)
        if not text.startswith(prompt):
            prompt = self._marked_prompt(row, len(row.input), closed)
        if len(parts) > len(turns):
            parts = _join_spans(parts)
        if len(parts) != len(turns) or not text.startswith(prompt):
            return None
        last = parts[-1][0]
        # The markers of some templates include the end of the prompt, or begin after it.
        offset = len(prompt) - last
        between = text[min(last, len(prompt)) : max(last, len(prompt))]
        spans = {turns[-1]: (len(prompt), len(text))}
        for turn, (begin, end) in zip(turns[:-1], parts[:-1], strict=True):
            if text.startswith(between, begin + min(offset, 0)):
                spans[turn] = (begin + offset, end)
            elif text.startswith(own := self._marked_prompt(row, turn, closed)) and begin <= len(own) < end:
                spans[turn] = (len(own), end)
        return Rendering(text, spans)

    def _for_template(self, message: Message) -> dict[str, Any]:
        """A turn without its weight, which templates do not know, and with its reasoning in a field."""
        turn = message.to_dict()
        turn.pop("weight", None)
        parser = self.parser if self._takes_reasoning and message.role == "assistant" else None
        if parser is not None and message.content.lstrip().startswith(parser.open):
            turn["reasoning_content"], turn["content"] = parser.split(message.content)
        return turn

    def _opened(self, prompt: str) -> str:
        """The end of a prompt that opens reasoning, from its tag on; else empty."""
        if self.parser is None or not self.parser.is_open(prompt):
            return ""
        return prompt[prompt.rindex(self.parser.open.rstrip()) :]

    def _without_empty_reasoning(self, answer: str) -> str:
        if self.parser is None:
            return answer
        block, close, rest = answer.partition(self.parser.close)
        is_empty = close and block.startswith(self.parser.open) and not block[len(self.parser.open) :].strip()
        return rest.lstrip() if is_empty else answer

    def _closing(self) -> str:
        return "" if self.parser is None else f"\n{self.parser.close}\n\n"

    def _text(self, row: Row, turns: int) -> str:
        return self._render(row, turns, add_generation_prompt=False)

    def _prompt(self, row: Row, turns: int) -> str:
        return self._render(row, turns, add_generation_prompt=True)

    def _render(self, row: Row, turns: int, *, add_generation_prompt: bool) -> str:
        """Render the first `turns` turns of a row with the model's own template."""
        try:
            return render(
                self._tokenizer,
                tuple(self._for_template(message) for message in row.messages[:turns]),
                tools=_tools(row),
                add_generation_prompt=add_generation_prompt,
                arguments=self._arguments,
            )
        # Templates that expect other types of content or arguments raise TypeError.
        except (TemplateError, TypeError) as error:
            raise RowNotEncodable(f"the model's chat template rejects it: {error}") from error

    def _marked_prompt(self, row: Row, turns: int, closed: str) -> str:
        return self._render_marked(row, turns, closed, add_generation_prompt=True)[0]

    def _render_marked(
        self, row: Row, turns: int, closed: str, *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Render the first `turns` turns with the training template.

        Args:
            row: the conversation.
            turns: number of turns.
            closed: text before each answer without reasoning.
            add_generation_prompt: whether to end with the prompt for an answer.
        """
        messages = [self._for_template(message) for message in row.messages[:turns]]
        for message in messages:
            has_reasoning = "reasoning_content" in message or (
                self.parser is not None and self.parser.close in message["content"]
            )
            if message["role"] == "assistant" and not has_reasoning:
                message["content"] = f"{closed}{message['content']}"
        try:
            return render_marked(
                self._tokenizer,
                self._training or "",
                messages,
                _tools(row),
                {**self._arguments, "add_generation_prompt": add_generation_prompt},
            )
        except (TemplateError, TypeError) as error:
            raise RowNotEncodable(f"the training template rejects it: {error}") from error


def _join_spans(parts: list[Span]) -> list[Span]:
    """Join parts without text between them, such as an answer and the end of the sequence."""
    joined = parts[:1]
    for begin, end in parts[1:]:
        if begin == joined[-1][1]:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def _tools(row: Row) -> list[Any] | None:
    return None if row.tools is None else json.loads(row.tools)


ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)")
"""An escape sequence of JSON."""


def check_tools(row: Row, text: str) -> None:
    """Raise RowNotEncodable if the template ignores tools, as templates without tool support do."""
    names = [call["function"]["name"] for message in row.messages for call in _calls(message)]
    offered = [] if row.tools is None else [tool["function"]["name"] for tool in json.loads(row.tools)]
    missing = next((name for name in (*offered, *names) if name not in text), None)
    if missing is not None:
        raise RowNotEncodable(
            f"the model's chat template omits the tool {missing}; use a base model that supports tool calls,"
            " give it another chat_template.jinja, or remove the tools"
        )


def check_calls(row: Row, answers: Mapping[int, str]) -> None:
    """Raise RowNotEncodable if a learned turn lacks one of its calls, or a value of its arguments.

    Some templates list the tools, but write no calls, or only the first one of a turn. `answers` are the
    rendered turns.
    """
    for turn, answer in answers.items():
        missing = _missing_call(_calls(row.messages[turn]), answer)
        if missing is not None:
            raise RowNotEncodable(
                f"the model's chat template omits {missing} in messages[{turn}], so the model would learn"
                " another answer; use a base model whose chat template writes such calls, give it another"
                " chat_template.jinja, or remove the row"
            )


def _missing_call(calls: list[dict[str, Any]], answer: str) -> str | None:
    """What the rendered answer lacks of the calls, whether it writes them as JSON, XML or other text."""
    if not calls:
        return None
    # Pairs of escape sequences are one character.
    plain = ESCAPE.sub(_unescape, answer).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    texts = [_letters(form) for form in (answer, plain, unescape(answer))]

    def count(value: object) -> int:
        letters = _letters(str(value))
        return max(text.count(letters) for text in texts)

    functions = [call["function"] for call in calls]
    for name, times in Counter(function["name"] for function in functions).items():
        if count(name) < times:
            return f"a call of {name}"
    for function in functions:
        for argument, value in function["arguments"].items():
            if not all(map(count, _values(value))):
                return f"the argument {argument} of the call of {function['name']}"
    return None


def _values(value: Any) -> Iterator[str | int | float]:
    """The texts and numbers in the value of an argument; other values have several forms."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _values(each)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value


def _letters(text: str) -> str:
    """The letters and digits of a text, which have one form in all notations."""
    return "".join(filter(str.isalnum, text))


def _unescape(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else ""


def _calls(message: Message) -> list[dict[str, Any]]:
    return [] if message.tool_calls is None else json.loads(message.tool_calls)
