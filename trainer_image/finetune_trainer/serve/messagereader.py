# SPDX-License-Identifier: Apache-2.0
"""Reads the text of one answer to a chat: reasoning, content and calls of tools."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from finetune_trainer.serve.responses import ToolCall

if TYPE_CHECKING:
    # They import transformers, which takes seconds.
    from finetune_trainer.serve.toolcalls import ToolStream
    from finetune_trainer.tokens.reasoning import ReasoningStream


class MessagePart(NamedTuple):
    """A piece of an answer."""

    reasoning: str
    content: str
    calls: tuple[ToolCall, ...]


@dataclass
class MessageReader:
    """Splits an answer that arrives in pieces."""

    reasoning: "ReasoningStream | None" = None
    """None: the answer has no reasoning."""
    tools: "ToolStream | None" = None
    """None: the answer has no calls."""
    calls: int = field(default=0, init=False)
    """Number of calls so far."""

    def push(self, text: str) -> MessagePart:
        """Add a piece. Returns what is certain."""
        if self.reasoning is None:
            return self._part("", text)
        return self._part(*self.reasoning.push(text))

    def finish(self) -> MessagePart:
        """Return what was held back. Call it after the last piece."""
        reasoning, content = ("", "") if self.reasoning is None else self.reasoning.finish()
        return self._part(reasoning, content, last=True)

    def _part(self, reasoning: str, content: str, *, last: bool = False) -> MessagePart:
        if self.tools is None:
            return MessagePart(reasoning, content, ())
        found = self.tools.push(content)
        if last:
            rest = self.tools.finish()
            found = type(found)(found.content + rest.content, found.calls + rest.calls)
        self.calls += len(found.calls)
        return MessagePart(reasoning, *found)
