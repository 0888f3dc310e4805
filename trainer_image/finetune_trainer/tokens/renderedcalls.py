# SPDX-License-Identifier: Apache-2.0
"""Whether a rendered conversation has the tools and the calls of its row.

Templates write calls as JSON, as elements of XML, or as text of their own. In all of these notations names
and values have the same letters and digits, so only these are compared.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from html import unescape
from typing import Any, Final

from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.rendering import RowNotEncodable

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
    plain = ESCAPE.sub(_unescaped, answer).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
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


def _unescaped(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else ""


def _calls(message: Message) -> list[dict[str, Any]]:
    return [] if message.tool_calls is None else json.loads(message.tool_calls)
