# SPDX-License-Identifier: Apache-2.0
"""Calls of tools in the content of an answer, read by the response parser of transformers.

A chat template shows the model in which form to write calls. The template also identifies which of the forms
below it uses; their names are those of vLLM's `--tool-call-parser`.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

from transformers.utils.chat_parsing import ResponseParser
from transformers.utils.chat_parsing.response_templates import load_response_template

from finetune_trainer.serve.responses import CalledFunction, ToolCall

CALLS: Final = "tool_calls"


@dataclass(frozen=True)
class ToolForm:
    """Form in which a family of templates has calls written."""

    name: str
    marks: tuple[str, ...]
    """Texts that all occur in the templates of the family."""
    lacks: tuple[str, ...]
    """Texts of other families that none of its templates has."""
    region: Mapping[str, Any]
    """A call, as a field of transformers' response templates."""

    @cached_property
    def template(self) -> Any:
        """The form as a response template of transformers."""
        fields = {CALLS: {**self.region, "repeats": True}, "content": {"content": "text"}}
        # An anchor is required, and searched in the prefix, which is empty here.
        return load_response_template({"start_anchor": "assistant", "fields": fields})


JSON_IN_TAGS: Final = ToolForm(
    "hermes",
    marks=("<tool_call>", "arguments"),
    lacks=("<arg_key>", "<function="),
    region={
        "open_pattern": r"\s*<tool_call>",
        "close": "</tool_call>",
        "content": "json",
        "content_args": {"allow_non_json": True},
        "transform": {"function": "{content}"},
    },
)
XML: Final = ToolForm(
    "qwen3_xml",
    marks=("<tool_call>", "<function=", "<parameter="),
    lacks=(),
    region={
        "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
        "close_pattern": r"</function>\s*</tool_call>",
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
        "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
    },
)
TOOL_FORMS: Final = (JSON_IN_TAGS, XML)


def find_tool_form(template: str) -> ToolForm | None:
    """The form of the calls that a chat template demands; None if it is not one of `TOOL_FORMS`."""
    for form in TOOL_FORMS:
        if all(mark in template for mark in form.marks) and not any(mark in template for mark in form.lacks):
            return form
    return None


class CallPiece(NamedTuple):
    """A piece of an answer."""

    content: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass
class ToolStream:
    """Separates calls from the other content of one answer, which arrives in pieces.

    A call becomes known when it is complete. What is in the tags of a call and is none stays content.
    """

    form: ToolForm
    tools: Sequence[Mapping[str, Any]]
    """Declarations of the tools. Arguments of the XML form get the types that they have there."""
    _raw: str = field(default="", init=False)
    """Inside of the call that is being read."""

    def __post_init__(self) -> None:
        tools: list[Any] = [dict(tool) for tool in self.tools]
        self._parser = ResponseParser(self.form.template, prefix="", tools=tools)

    def push(self, content: str) -> CallPiece:
        """Add a piece. Returns what is certain."""
        return self._read(self._parser.feed(content))

    def finish(self) -> CallPiece:
        """Return what was held back. Call it after the last piece."""
        return self._read(self._parser.finalize()[1])

    def _read(self, events: list[dict[str, Any]]) -> CallPiece:
        content, calls = "", []
        for event in events:
            is_call, kind = event["field"] == CALLS, event["type"]
            if kind == "region_chunk" and is_call:
                self._raw += event["text"]
            elif kind == "region_chunk":
                content += event["text"]
            elif kind == "region_close" and is_call:
                call = _call(event["value"]["function"])
                if call is None:
                    content += f"<tool_call>{self._raw}</tool_call>"
                else:
                    calls.append(call)
                self._raw = ""
        return CallPiece(content, tuple(calls))


def _call(value: Any) -> ToolCall | None:
    name, arguments = (value.get("name"), value.get("arguments")) if isinstance(value, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    function = CalledFunction(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
    return ToolCall(id=f"call_{uuid.uuid4().hex}", function=function)
