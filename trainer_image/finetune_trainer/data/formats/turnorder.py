# SPDX-License-Identifier: Apache-2.0
"""Checks of the order of a conversation's turns, and of which turns are learned."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from finetune_trainer.data.rowproblems import Code, Issue
from finetune_trainer.data.textchecks import shown
from finetune_trainer.rows import Message, Role

AS_WRITTEN: Final[Mapping[Role, str]] = {role: role for role in ("system", "user", "assistant", "tool")}


def order_issues(
    path: str,
    turns: Sequence[Message],
    role_names: Mapping[Role, str] = AS_WRITTEN,
    path_of: Callable[[int], str] | None = None,
) -> list[Issue]:
    """Issues in the order of valid turns; `role_names` are the names of the roles in the file.

    `path_of` gives the path of a turn if the turns are not one list.
    """
    path_of = path_of or (lambda index: f"{path}[{index}]")
    if not any(turn.role == "assistant" for turn in turns):
        return [
            Issue(
                Code.NOTHING_TO_LEARN,
                f"{path} has no assistant turn",
                "an answer to learn",
                "add the assistant's answer",
                column=path,
            )
        ]
    allowed: tuple[Role, ...] = ("user",)
    for index, turn in enumerate(turns):
        if turn.role == "system" and index == 0:
            continue
        if turn.role not in allowed:
            return [_order_issue(path_of(index), turn, allowed, role_names)]
        allowed = _after(turn)
    if turns[-1].role != "assistant":
        return [
            Issue(
                Code.TURN_ORDER,
                f"{path} ends with {role_names[turns[-1].role]}",
                "the assistant's turn last",
                "add the answer",
                column=path,
            )
        ]
    return _answer_issues(turns, path_of) + _learning_issues(path, turns)


def _after(turn: Message) -> tuple[Role, ...]:
    if turn.role == "user":
        return ("assistant",)
    if turn.role == "tool":
        return ("assistant", "tool")
    return ("user",) if turn.tool_calls is None else ("tool",)


def _order_issue(
    path: str, turn: Message, allowed: tuple[Role, ...], role_names: Mapping[Role, str]
) -> Issue:
    if turn.role == "system":
        return Issue(
            Code.TURN_ORDER,
            f"{path} is a system message",
            "system first only",
            "move or remove it",
            column=path,
        )
    if turn.role == "tool":
        return Issue(
            Code.TOOL_CALL,
            f"{path} is from tool, but the turn before it makes no tool call",
            "tool turns only after an assistant turn with tool_calls",
            "add the tool_calls, or remove it",
            column=path,
        )
    if "tool" in allowed and "assistant" not in allowed:
        return Issue(
            Code.TOOL_CALL,
            f"{path} is from {role_names[turn.role]}",
            "tool: the response to the tool_calls before it",
            "add the tool turn",
            column=path,
        )
    user, assistant = role_names["user"], role_names["assistant"]
    return Issue(
        Code.TURN_ORDER,
        f"{path} is from {role_names[turn.role]}",
        f"{role_names[allowed[0]]}: {user} and {assistant} take turns",
        "merge or reorder the turns",
        column=path,
    )


def _answer_issues(turns: Sequence[Message], path_of: Callable[[int], str]) -> list[Issue]:
    """Issues of tool turns that respond to a call that was not made."""
    found = []
    identities: set[str] = set()
    for index, turn in enumerate(turns):
        if turn.tool_calls is not None:
            identities = {call["id"] for call in json.loads(turn.tool_calls) if "id" in call}
        elif turn.tool_call_id is not None and turn.tool_call_id not in identities:
            column = f"{path_of(index)}.tool_call_id"
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


def _learning_issues(path: str, turns: Sequence[Message]) -> list[Issue]:
    if turns[-1].learned:
        return []
    if any(turn.learned for turn in turns if turn.role == "assistant"):
        what = f"{path} ends with a turn of weight 0"
        expected = "weight 1 for the last turn, which evaluation uses"
        fix = "end the conversation with the last turn of weight 1"
    else:
        what = f"{path} has no assistant turn of weight 1"
        expected, fix = "an answer to learn", "give the last turn weight 1, or remove the row"
    return [Issue(Code.NOTHING_TO_LEARN, what, expected, fix, column=path)]
