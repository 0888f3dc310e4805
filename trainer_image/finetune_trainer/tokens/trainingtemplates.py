# SPDX-License-Identifier: Apache-2.0
"""Chat templates with markers around what the assistant generates, `{% generation %}`.

TRL has such a copy of the templates of many model families, found by the text of the published template. They
are read from its files, because importing TRL imports PyTorch and takes seconds.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

SUFFIX: Final = "_training.jinja"
MARKER: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")


def training_template(template: str) -> str | None:
    """The copy of a published template with markers; the template itself if it has markers; else None."""
    return template if MARKER.search(template) else _published().get(template)


@cache
def _published() -> Mapping[str, str]:
    found = {}
    for path in sorted(folder().glob(f"*{SUFFIX}")):
        original = path.with_name(path.name.removesuffix(SUFFIX) + ".jinja")
        found[original.read_text(encoding="utf-8")] = path.read_text(encoding="utf-8")
    return found


def folder() -> Path:
    """TRL's folder of chat templates."""
    spec = find_spec("trl")
    locations = [] if spec is None else spec.submodule_search_locations
    return Path(*(locations or [])[:1], "chat_templates")


def render_marked(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: list[Any] | None,
    arguments: Mapping[str, Any],
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation. Returns the text, and start and end of each marked part in characters.

    Raises jinja2.TemplateError, or TypeError for messages that the template cannot handle.
    """
    rendered: Any = render_jinja_template(
        conversations=[[dict(message) for message in messages]],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **arguments},
    )
    texts, parts = rendered
    return texts[0], parts[0]
