# SPDX-License-Identifier: Apache-2.0
"""Conversations with one model, or with two that get the same questions, on a terminal or in a script."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from openai import OpenAI, OpenAIError
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finetune_client.errors import OperationError
from finetune_client.tables import printable

REFRESH_PER_SECOND: Final = 8


class Piece(NamedTuple):
    """A part of an answer as it arrives."""

    text: str
    is_reasoning: bool = False


@dataclass
class Speaker:
    """One model, with what it was asked and has answered.

    Attributes:
        settings: fields of each request, such as `temperature`.
        messages: the conversation, in the form of the chat API.
    """

    client: OpenAI
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    messages: list[Any] = field(default_factory=list)

    def answer(self, question: str) -> Iterator[Piece]:
        """The answer, piece by piece. A question whose answer is not complete is forgotten.

        Raises:
            OperationError: the request failed, or the stream ended before the answer did.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        pieces, is_complete = [], False
        try:
            with self.client.chat.completions.create(
                model=self.model, messages=asked, stream=True, **self.settings
            ) as stream:
                for chunk in stream:
                    for choice in chunk.choices:
                        is_complete |= choice.finish_reason is not None
                        reasoning = getattr(choice.delta, "reasoning", None)
                        if reasoning:
                            yield Piece(printable(reasoning), is_reasoning=True)
                        if choice.delta.content:
                            pieces.append(choice.delta.content)
                            yield Piece(printable(choice.delta.content))
        except OpenAIError as error:
            raise OperationError(f"{self.model} did not answer: {printable(str(error))}") from error
        if not is_complete:
            raise OperationError(f"{self.model} did not answer: the stream ended before the answer did")
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]


class Conversation:
    """Asks all speakers each question and prints their answers.

    Args:
        console: where answers go. Reasoning and columns are shown on a terminal only.
    """

    def __init__(self, console: Console, speakers: Sequence[Speaker]) -> None:
        self._console = console
        self._speakers = speakers

    def ask(self, question: str) -> None:
        """Ask one question.

        Raises:
            OperationError: a model did not answer.
            KeyboardInterrupt: the user ended the answer; what has arrived is printed.
        """
        if len(self._speakers) == 1:
            self._print(self._speakers[0], question)
        elif self._console.is_terminal:
            self._print_columns(question)
        else:
            for speaker in self._speakers:
                self._write(f"{speaker.model}:\n")
                self._print(speaker, question)

    def converse(self, read: Callable[[], str]) -> None:
        """Ask what `read` returns until it raises EOFError. Ctrl-C ends an answer, and otherwise the chat."""
        while True:
            try:
                question = read().strip()
            except EOFError:
                self._write("\n")
                return
            if not question:
                continue
            try:
                self.ask(question)
            except KeyboardInterrupt:
                self._console.print("(stopped; Ctrl-C again ends the chat)", style="dim")
            except OperationError as error:
                self._console.print(str(error), style="red", markup=False)

    def _print(self, speaker: Speaker, question: str) -> None:
        ends_line = True
        try:
            for piece in speaker.answer(question):
                if piece.is_reasoning and not self._console.is_terminal:
                    continue
                if piece.is_reasoning:
                    self._console.print(Text(piece.text, style="dim"), end="", soft_wrap=True)
                else:
                    self._write(piece.text)
                ends_line = piece.text.endswith("\n")
        finally:
            if not ends_line:
                self._write("\n")

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()

    def _print_columns(self, question: str) -> None:
        """Both answers side by side while they arrive, from one thread per model."""
        answers = [Text() for _ in self._speakers]
        arrived: queue.SimpleQueue[tuple[int, Piece | OperationError | None]] = queue.SimpleQueue()
        stopped = threading.Event()

        def receive(index: int) -> None:
            try:
                for piece in self._speakers[index].answer(question):
                    arrived.put((index, piece))
                    if stopped.is_set():
                        return
                arrived.put((index, None))
            except OperationError as error:
                arrived.put((index, error))

        for index in range(len(self._speakers)):
            threading.Thread(target=receive, args=(index,), daemon=True).start()
        open_answers = len(self._speakers)
        try:
            with Live(console=self._console, refresh_per_second=REFRESH_PER_SECOND, transient=True) as live:
                while open_answers:
                    index, piece = arrived.get()
                    if isinstance(piece, Piece):
                        answers[index].append(piece.text, "dim" if piece.is_reasoning else "")
                    else:
                        open_answers -= 1
                        if piece is not None:
                            answers[index].append(str(piece), "red")
                    live.update(self._columns(answers))
        finally:
            stopped.set()
            self._console.print(self._columns(answers))

    def _columns(self, answers: Sequence[Text]) -> Table:
        table = Table(expand=True)
        for speaker in self._speakers:
            table.add_column(speaker.model, ratio=1, overflow="fold")
        table.add_row(*answers)
        return table
