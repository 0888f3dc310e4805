# SPDX-License-Identifier: Apache-2.0
"""Conversations with one model or two, on a terminal and in a script."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from typing_extensions import override

from finetune_client.conversation import Conversation, Piece, Speaker
from finetune_client.errors import OperationError
from tests.unit.client.openaiserver import OpenAIServer, serving


def screen(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=60, color_system=None, highlight=False), out


@contextmanager
def speakers(*models: str) -> Iterator[list[Speaker]]:
    with serving() as endpoint, endpoint.client() as client:
        yield [Speaker(client, model, {"temperature": 0}) for model in models]


def asked(*models: str, terminal: bool = False) -> str:
    console, out = screen(terminal=terminal)
    with speakers(*models) as speaking:
        Conversation(console, speaking).ask("Who fixes this?")
    return out.getvalue()


def test_an_answer_is_printed_as_it_arrives_and_ends_its_line() -> None:
    assert asked("routing") == "routing\n answers\n"


def test_reasoning_is_shown_on_a_terminal_and_left_out_of_a_script() -> None:
    assert asked("thinking") == "dispatch-bay\n"
    assert asked("thinking", terminal=True) == "hmdispatch-bay\n"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("models", [("hostile",), ("hostile", "routing")])
def test_codes_in_an_answer_do_not_act_on_the_terminal(models: tuple[str, ...], *, terminal: bool) -> None:
    printed = asked(*models, terminal=terminal)
    assert "�]0;owned��31mred�over" in printed
    for code in ("\x1b]", "\x07", "\x9b", "\r" + "over"):
        assert code not in printed


def test_a_script_gets_two_answers_one_after_the_other() -> None:
    assert asked("routing", "base") == "routing:\nrouting\n answers\nbase:\nbase\n answers\n"


def test_a_terminal_shows_two_answers_side_by_side() -> None:
    printed = asked("thinking", "base", terminal=True)
    last = printed[printed.rindex("┏") :].splitlines()
    assert [part.strip() for part in last[1].strip("┃").split("┃")] == ["thinking", "base"]
    assert [part.strip() for part in last[3].strip("│").split("│")] == ["hmdispatch-bay", "base"]


def test_the_next_question_is_asked_with_the_conversation_so_far() -> None:
    console, _ = screen()
    with speakers("routing") as speaking:
        conversation = Conversation(console, speaking)
        conversation.ask("one")
        conversation.ask("two")
        assert OpenAIServer.bodies[-1]["messages"] == [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "routing\n answers"},
            {"role": "user", "content": "two"},
        ]
        assert OpenAIServer.bodies[-1]["temperature"] == 0


def test_a_failed_request_names_the_model_and_its_question_is_forgotten() -> None:
    with speakers("missing", "cut") as (missing, cut):
        for speaker in (missing, cut):
            with pytest.raises(OperationError, match=f"{speaker.model} did not answer"):
                list(speaker.answer("one"))
            assert speaker.messages == []


def test_one_of_two_models_that_fails_does_not_hide_the_answer_of_the_other() -> None:
    printed = asked("missing", "routing", terminal=True)
    assert "missing did not answer" in " ".join(printed.split())
    assert "answers" in printed


class Interrupted(Speaker):
    """Sends a piece; then the user presses Ctrl-C."""

    closed = False

    @override
    def answer(self, question: str) -> Iterator[Piece]:
        try:
            yield Piece("so far")
            raise KeyboardInterrupt
        finally:
            self.closed = True


def converse(speaking: list[Speaker], *questions: str | type[BaseException]) -> str:
    console, out = screen()
    left = iter((*questions, EOFError))

    def read() -> str:
        entered = next(left)
        if isinstance(entered, str):
            return entered
        raise entered

    Conversation(console, speaking).converse(read)
    return out.getvalue()


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on() -> None:
    with speakers("routing") as (routing,):
        interrupted = Interrupted(routing.client, "routing")
        printed = converse([interrupted], "one", "  ", "two")
    assert printed == "so far\n(stopped; Ctrl-C again ends the chat)\n" * 2 + "\n"
    assert interrupted.closed
    assert interrupted.messages == []


def test_ctrl_c_at_the_prompt_ends_the_chat() -> None:
    with speakers("routing") as speaking, pytest.raises(KeyboardInterrupt):
        converse(speaking, "one", KeyboardInterrupt)


def test_an_error_in_a_chat_is_printed_and_the_chat_goes_on() -> None:
    with speakers("flaky") as speaking:
        OpenAIServer.asked = 1
        printed = converse(speaking, "one", "two")
    assert printed.startswith("flaky did not answer")
    assert printed.endswith("flaky\n answers\n\n")
