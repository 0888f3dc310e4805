# SPDX-License-Identifier: Apache-2.0
"""Separates the reasoning of an answer from its content, as the engines do before they answer a client.

The built-in engine and the evaluation use the same parsers, so a score is that of the text that clients get.
The names are those of vLLM's `--reasoning-parser`,
<https://docs.vllm.ai/en/latest/features/reasoning_outputs/>. Unlike those of vLLM, the parsers drop white
space between reasoning and content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from transformers import PreTrainedTokenizerBase

MAX_TAG_TOKENS: Final = 16
"""Number of tokens at the end of a prompt that can be its last tag, with white space after it."""


class Parts(NamedTuple):
    """A piece of an answer."""

    reasoning: str = ""
    content: str = ""


@dataclass(frozen=True)
class ReasoningParser:
    """Tags of one family of templates."""

    name: str
    open: str
    """Tag before the reasoning."""
    close: str
    """Tag after it."""
    marks: tuple[str, ...] = ()
    """Texts that all occur in the templates of the family, in addition to the tags."""
    content_open: str = ""
    """Tag before the content. Text outside of reasoning and content belongs to neither."""
    content_close: tuple[str, ...] = ()
    """Tags after the content."""

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags."""
        return tuple(tag for tag in (self.open, self.close, self.content_open, *self.content_close) if tag)

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends inside of reasoning, which the answer then continues."""
        return prompt.rstrip().endswith(self.open.rstrip())

    def split(self, answer: str, *, is_open: bool = False) -> Parts:
        """Split a whole answer."""
        stream = ReasoningStream(self, is_open=is_open)
        first, rest = stream.push(answer), stream.finish()
        return Parts(first.reasoning + rest.reasoning, first.content + rest.content)


PARSERS: Final = (
    ReasoningParser(
        "openai_gptoss",
        "<|channel|>analysis<|message|>",
        "<|end|>",
        marks=("<|channel|>", "<|return|>"),
        content_open="<|channel|>final<|message|>",
        content_close=("<|return|>", "<|call|>"),
    ),
    ReasoningParser(
        "muse_glimmer",
        "to=self<|message|>",
        "<|eom|>",
        marks=("to=self<|message|>", "<|eom|>"),
        content_open="to=user<|message|>",
        content_close=("<|eot|>",),
    ),
    # Not each of its templates writes reasoning, but each removes it from earlier turns.
    ReasoningParser("gemma4", "<|channel>thought\n", "<channel|>", marks=("<|channel>", "<channel|>")),
    ReasoningParser("glm45", "<think>", "</think>", marks=("[gMASK]", "</think>")),
    ReasoningParser("deepseek_r1", "<think>", "</think>", marks=("<｜Assistant｜>", "</think>")),
    ReasoningParser("qwen3", "<think>", "</think>", marks=("<think>", "</think>")),
)
"""Of two parsers whose marks occur in a template, the first is used."""


def find_parser(name: str) -> ReasoningParser | None:
    """The parser with this name; None if there is none."""
    return next((parser for parser in PARSERS if parser.name == name), None)


def detect_parser(template: str) -> ReasoningParser | None:
    """The parser for a chat template; None if its answers have no reasoning."""
    return next((parser for parser in PARSERS if all(mark in template for mark in parser.marks)), None)


def parser_for(tokenizer: PreTrainedTokenizerBase) -> ReasoningParser | None:
    """The parser for the tokenizer's chat template."""
    return detect_parser(str(tokenizer.get_chat_template()))


@dataclass
class ReasoningStream:
    """Splits an answer that arrives in pieces. Holds text back that may be the beginning of a tag."""

    parser: ReasoningParser
    is_open: bool = False
    """Whether the prompt ends inside of reasoning."""
    _held: str = field(default="", init=False)
    _state: str = field(default="", init=False)
    _started: bool = field(default=False, init=False)
    """Whether the current part has text other than white space."""

    def __post_init__(self) -> None:
        self._state = "reasoning" if self.is_open else "start"

    @property
    def in_content(self) -> bool:
        """Whether the content has begun, as far as is certain."""
        return self._state == "content"

    def push(self, text: str) -> Parts:
        """Add a piece. Returns what is certain."""
        return self._advance(text, last=False)

    def finish(self) -> Parts:
        """Return what was held back. Call it after the last piece."""
        return self._advance("", last=True)

    def _advance(self, text: str, *, last: bool) -> Parts:
        self._held += text
        reasoning, content = "", ""
        while True:
            expected = self._expected()
            found = min(
                ((at, tag) for tag in expected if (at := self._held.find(tag)) >= 0),
                default=(-1, ""),
            )
            if self._state == "start" and not self._may_begin(found, last=last):
                # No tag at the beginning: the answer has no reasoning.
                self._state = "content"
                self._started = True
                continue
            if found[0] < 0:
                piece = self._certain(expected, last=last)
                self._held = self._held[len(piece) :]
            else:
                piece, self._held = self._held[: found[0]], self._held[found[0] + len(found[1]) :]
            if self._state == "reasoning":
                reasoning += self._trimmed(piece)
            elif self._state == "content":
                content += self._trimmed(piece)
            if found[0] < 0:
                return Parts(reasoning.rstrip() if last else reasoning, content)
            if self._state == "reasoning":
                reasoning = reasoning.rstrip()
            self._enter(found[1])

    def _expected(self) -> Sequence[str]:
        """The tags that change the current state."""
        parser = self.parser
        if self._state == "reasoning":
            return (parser.close,)
        if self._state == "content":
            return parser.content_close
        return (parser.open, parser.content_open) if parser.content_open else (parser.open,)

    def _may_begin(self, found: tuple[int, str], *, last: bool) -> bool:
        """Whether the answer begins with a tag, or may do so with more text."""
        if found[0] >= 0:
            return bool(self.parser.content_open) or not self._held[: found[0]].strip()
        if last:
            return False
        beginning = self._held.lstrip()
        # Harmony names a recipient before the first tag.
        return bool(self.parser.content_open) or any(tag.startswith(beginning) for tag in self._expected())

    def _certain(self, expected: Sequence[str], *, last: bool) -> str:
        """The held text that is no part of a tag, and of reasoning no white space that may be its end."""
        if last:
            return self._held
        kept = max((_overlap(self._held, tag) for tag in expected), default=0)
        certain = self._held[: len(self._held) - kept]
        if self._state == "start":
            return ""
        return certain.rstrip() if self._state == "reasoning" else certain

    def _trimmed(self, piece: str) -> str:
        if self._started:
            return piece
        piece = piece.lstrip()
        self._started = bool(piece)
        return piece

    def _enter(self, tag: str) -> None:
        parser = self.parser
        self._started = False
        if tag == parser.open:
            self._state = "reasoning"
        elif tag == parser.content_open or (tag == parser.close and not parser.content_open):
            self._state = "content"
        else:
            self._state = "between"


def _overlap(text: str, tag: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


class AnswerReader:
    """Reads generated token ids as a client of the engine receives them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        parser: ReasoningParser | None = None,
    ) -> None:
        """Read answers to prompts of a template.

        Args:
            tokenizer: tokenizer of the ids.
            template: the chat template of the prompts; None for that of the tokenizer.
            parser: parser of the reasoning; None for the one that fits the template.
        """
        self._tokenizer = tokenizer
        fitting = parser_for(tokenizer) if template is None else detect_parser(template)
        self.parser = parser or fitting
        """Parser of the reasoning; None if the chat template has none."""
        control = {
            token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special
        }
        self._control = control.keys() | set(tokenizer.all_special_ids)
        tags = () if self.parser is None else self.parser.tags
        self._tags = {token for token, text in control.items() if any(text in tag for tag in tags)}

    def text(self, ids: list[int]) -> str:
        """Decode ids without control tokens, except those that the parser needs."""
        if not self._tags:
            return self._decode(ids, skip_special_tokens=True)
        shown = [token for token in ids if token in self._tags or token not in self._control]
        return self._decode(shown, skip_special_tokens=False)

    def is_open(self, prompt: list[int]) -> bool:
        """Whether the prompt ends inside of reasoning, which the answer then continues."""
        end = self._decode(prompt[-MAX_TAG_TOKENS:], skip_special_tokens=False)
        return self.parser is not None and self.parser.is_open(end)

    def content(self, prompt: list[int], answer: list[int]) -> str:
        """The content of an answer, without surrounding white space."""
        text = self.text(answer)
        if self.parser is not None:
            text = self.parser.split(text, is_open=self.is_open(prompt)).content
        return text.strip()

    def reference(self, text: str) -> str:
        """The content of a correct answer in a dataset, without surrounding white space."""
        return (text if self.parser is None else self.parser.split(text).content).strip()

    def _decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return str(text)
