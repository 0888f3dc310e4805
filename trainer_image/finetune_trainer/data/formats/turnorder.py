"""The order of the turns of a conversation, and which of them are learned."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import shown
from finetune_trainer.rows import Message, Role

AS_WRITTEN: Final[Mapping[Role, str]] = {role: role for role in ("system", "user", "assistant", "tool")}


def order_issues(
    place: str,
    turns: Sequence[Message],
    said: Mapping[Role, str] = AS_WRITTEN,
    at: Callable[[int], str] | None = None,
) -> list[Issue]:
    """What is wrong with the order of valid turns; `said` are the roles as the file calls them.

    `at` gives the place of a turn, where the turns are not one list.
    """
    at = at or (lambda index: f"{place}[{index}]")
    if not any(turn.role == "assistant" for turn in turns):
        return [
            Issue(
                Code.NOTHING_TO_LEARN,
                f"{place} has no assistant turn",
                "an answer to learn",
                "add the assistant's answer",
                column=place,
            )
        ]
    allowed: tuple[Role, ...] = ("user",)
    for index, turn in enumerate(turns):
        if turn.role == "system" and index == 0:
            continue
        if turn.role not in allowed:
            return [_order_issue(at(index), turn, allowed, said)]
        allowed = _after(turn)
    if turns[-1].role != "assistant":
        return [
            Issue(
                Code.TURN_ORDER,
                f"{place} ends with {said[turns[-1].role]}",
                "the assistant's turn last",
                "add the answer",
                column=place,
            )
        ]
    return _answer_issues(turns, at) + _learning_issues(place, turns)


def _after(turn: Message) -> tuple[Role, ...]:
    if turn.role == "user":
        return ("assistant",)
    if turn.role == "tool":
        return ("assistant", "tool")
    return ("user",) if turn.tool_calls is None else ("tool",)


def _order_issue(place: str, turn: Message, allowed: tuple[Role, ...], said: Mapping[Role, str]) -> Issue:
    if turn.role == "system":
        return Issue(
            Code.TURN_ORDER,
            f"{place} is a system message",
            "system first only",
            "move or remove it",
            column=place,
        )
    if turn.role == "tool":
        return Issue(
            Code.TOOL_CALL,
            f"{place} is from tool, but the turn before it calls none",
            "a tool's turn after an assistant's turn with tool_calls",
            "add the tool_calls, or remove it",
            column=place,
        )
    if "tool" in allowed and "assistant" not in allowed:
        return Issue(
            Code.TOOL_CALL,
            f"{place} is from {said[turn.role]}",
            "tool: what the tool answers to the tool_calls before it",
            "add the tool's turn",
            column=place,
        )
    user, assistant = said["user"], said["assistant"]
    return Issue(
        Code.TURN_ORDER,
        f"{place} is from {said[turn.role]}",
        f"{said[allowed[0]]}: {user} and {assistant} take turns",
        "join or reorder the turns",
        column=place,
    )


def _answer_issues(turns: Sequence[Message], at: Callable[[int], str]) -> list[Issue]:
    """Of tools' turns that answer a call that was not made."""
    found = []
    identities: set[str] = set()
    for index, turn in enumerate(turns):
        if turn.tool_calls is not None:
            identities = {call["id"] for call in json.loads(turn.tool_calls) if "id" in call}
        elif turn.tool_call_id is not None and turn.tool_call_id not in identities:
            column = f"{at(index)}.tool_call_id"
            found.append(
                Issue(
                    Code.TOOL_CALL,
                    f"{column} is {shown(turn.tool_call_id)}, which no call before it has",
                    "the id of one of the tool_calls before it",
                    "correct the id",
                    column=column,
                )
            )
    return found


def _learning_issues(place: str, turns: Sequence[Message]) -> list[Issue]:
    if turns[-1].learned:
        return []
    if any(turn.learned for turn in turns if turn.role == "assistant"):
        what = f"{place} ends with a turn of weight 0"
        expected = "weight 1 of the last turn, by which the model is judged"
        fix = "cut the conversation after the last turn of weight 1"
    else:
        what = f"{place} has no assistant turn of weight 1"
        expected, fix = "an answer to learn", "give the last turn weight 1, or remove the row"
    return [Issue(Code.NOTHING_TO_LEARN, what, expected, fix, column=place)]
