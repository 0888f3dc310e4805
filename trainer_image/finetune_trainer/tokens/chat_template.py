# SPDX-License-Identifier: Apache-2.0
"""The chat template of a tokenizer, its marked copy for training, and its control tokens.

Prompts and completions are trained and served as a chat, so a request with the prompt as its user message
sees exactly the tokens of training. If the model has a chat template, it is used. If it has none, as most
base models, the trainer supplies one (`supplied_templates`).

The marked copy has `{% generation %}` around what the assistant generates. TRL has such a copy of the
templates of many model families, found by the text of the published template. They are read from its files,
because importing TRL imports PyTorch and takes seconds.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.reasoning import parser_for
from finetune_trainer.tokens.supplied_templates import CONTROL_TOKENS, supplied_template, template_text

SUFFIX: Final = "_training.jinja"
MARKER: Final = re.compile(r"\{%-?\s*generation\s*-?%\}")


def training_template(template: str) -> str | None:
    """The copy of a published template with markers; the template itself if it has markers; else None."""
    return template if MARKER.search(template) else _published().get(template)


@cache
def _published() -> Mapping[str, str]:
    found = {}
    for path in sorted(trl_templates_folder().glob(f"*{SUFFIX}")):
        original = path.with_name(path.name.removesuffix(SUFFIX) + ".jinja")
        found[original.read_text(encoding="utf-8")] = path.read_text(encoding="utf-8")
    return found


def trl_templates_folder() -> Path:
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


MODEL_TEMPLATE: Final = "model"
"""Name that refers to the model's own template."""

PAD_TOKENS: Final = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
"""Padding tokens of models that do not declare one."""

PROBE: Final = (
    {"role": "user", "content": "ping"},
    {"role": "assistant", "content": "pong"},
)
PROBE_TOOL: Final[dict[str, Any]] = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
    },
}


TemplateArguments = Mapping[str, Any]
"""Arguments for the chat template, such as enable_thinking: `chatTemplateKwargs` of the API."""
NONE: Final[TemplateArguments] = MappingProxyType({})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`, with a chat template and a padding token.

    Raises StageFailure (BASE_MODEL_INVALID) if it cannot be read or used for chats.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    # On a damaged file the readers raise nearly any exception, including a bare Exception from Rust.
    except Exception as error:
        raise _invalid(folder, f"the tokenizer cannot be read: {type(error).__name__}: {error}") from error
    if not tokenizer.is_fast:
        raise _invalid(folder, "it has no tokenizer.json; save the tokenizer again with a newer transformers")
    if tokenizer.eos_token_id is None:
        raise _invalid(folder, "its tokenizer_config.json names no end-of-sequence token (eos_token)")
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None:
        tokenizer.chat_template = supplied_template(vocabulary.__contains__)
    if not isinstance(tokenizer.chat_template, str) and "default" not in tokenizer.chat_template:
        raise _invalid(folder, "none of its chat templates is named default")
    if tokenizer.pad_token is None:
        # Labels do not depend on the padding token, so the end-of-sequence token is safe as the last resort.
        candidates = [token for token in PAD_TOKENS if token in vocabulary and token != tokenizer.eos_token]
        tokenizer.pad_token = (candidates or [tokenizer.unk_token or tokenizer.eos_token])[0]
    try:
        render(tokenizer, PROBE)
    except TemplateError as error:
        raise _invalid(
            folder, f"its chat template cannot render a question and its answer: {error}"
        ) from error
    return tokenizer


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """`model` for the model's own template, else the name of the supplied one."""
    for name in CONTROL_TOKENS:
        if tokenizer.chat_template == template_text(name):
            return name
    return MODEL_TEMPLATE


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, generation_config: GenerationConfig | None
) -> list[int]:
    """Token ids that end an answer, sorted.

    The end of the sequence, of a turn and of calls, and those of the generation config.
    """
    found = {tokenizer.eos_token_id, end_of_turn_id(tokenizer), end_of_calls_id(tokenizer)}
    configured = None if generation_config is None else generation_config.eos_token_id
    found.update(configured if isinstance(configured, list) else [configured])
    return sorted(token for token in found if token is not None)


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE) -> int | None:
    """The control token that the chat template adds after an answer; None if it adds none."""
    before = render(tokenizer, PROBE[:1], add_generation_prompt=True, arguments=arguments)
    training = training_template(str(tokenizer.get_chat_template()))
    if training is None:
        text = render(tokenizer, PROBE, arguments=arguments)
    else:
        # Some templates write the end of a turn with the next one; their training copies do not.
        text, _ = render_marked(tokenizer, training, PROBE, None, arguments)
    control = control_ids(tokenizer)
    ids: list[int] = tokenizer(text.removeprefix(before), add_special_tokens=False)["input_ids"]
    return next((token for token in reversed(ids) if token in control), None)


def end_of_calls_id(tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE) -> int | None:
    """The control token that ends an answer with calls; None if the template has none for them only.

    A token that also occurs between the calls of one answer does not end it.
    """
    try:
        answer = _probed_calls(tokenizer, 2, arguments)
    except (TemplateError, TypeError, ValueError):
        # Some templates allow one call in an answer.
        try:
            answer = _probed_calls(tokenizer, 1, arguments)
        except (TemplateError, TypeError, ValueError):
            return None
    if PROBE_TOOL["function"]["name"] not in answer:
        return None
    control = control_ids(tokenizer)
    ids: list[int] = tokenizer(answer.rstrip(), add_special_tokens=False)["input_ids"]
    last = ids[-1]
    is_end = last in control and ids.count(last) == 1
    return last if is_end and last != end_of_turn_id(tokenizer, arguments) else None


def _probed_calls(tokenizer: PreTrainedTokenizerBase, calls: int, arguments: TemplateArguments) -> str:
    """An answer with calls, as the chat template renders it. Raises what the template raises."""
    functions = ({"name": PROBE_TOOL["function"]["name"], "arguments": {"number": n}} for n in range(calls))
    called = [{"type": "function", "function": function} for function in functions]
    messages = (PROBE[0], {"role": "assistant", "content": "", "tool_calls": called})
    before = render(
        tokenizer, messages[:1], tools=[PROBE_TOOL], add_generation_prompt=True, arguments=arguments
    )
    training = training_template(str(tokenizer.get_chat_template()))
    if training is None:
        text = render(tokenizer, messages, tools=[PROBE_TOOL], arguments=arguments)
    else:
        text, _ = render_marked(tokenizer, training, messages, [PROBE_TOOL], arguments)
    # Some templates open reasoning in the prompt only.
    shared = next(
        (at for at, pair in enumerate(zip(before, text, strict=False)) if len({*pair}) > 1), len(before)
    )
    return text[shared:]


def has_system_turn(tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE) -> bool:
    """Whether the chat template renders a system turn. Some templates reject or omit it."""
    instructions = {"role": "system", "content": "instructions for pong"}
    try:
        text = render(tokenizer, (instructions, *PROBE[:1]), add_generation_prompt=True, arguments=arguments)
    except (TemplateError, TypeError):
        return False
    return instructions["content"] in text


def control_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the control tokens."""
    return frozenset(token for token, added in tokenizer.added_tokens_decoder.items() if added.special)


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: tuple[Mapping[str, Any], ...],
    *,
    tools: list[dict[Any, Any] | Callable[..., Any]] | None = None,
    template: str | None = None,
    add_generation_prompt: bool = False,
    arguments: TemplateArguments = NONE,
) -> str:
    """Render the conversation as text, with `template` or the tokenizer's own.

    Raises jinja2.TemplateError for messages that the template rejects.
    """
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        tools=tools,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **arguments,
    )
    return cast(str, text)


def _invalid(folder: Path, what: str) -> StageFailure:
    return StageFailure(FailureReason.BASE_MODEL_INVALID, f"base model in {folder}: {what}")


class ControlTokens:
    """Finds the control tokens of one tokenizer in the text of rows.

    The tokenizer reads such text as the control token itself: a user's `<|im_end|>` ends the turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        parser = parser_for(tokenizer)
        expected = "" if parser is None else "".join(parser.tags)
        texts = {
            *(str(token) for token in tokenizer.all_special_tokens),
            *(added.content for added in tokenizer.added_tokens_decoder.values() if added.special),
        }
        # Answers with reasoning have its tags.
        found = sorted((text for text in texts if text and text not in expected), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found)) or r"(?!)")

    def first_in(self, row: Row) -> str | None:
        """The first control token in the texts of a row; None if there is none."""
        texts = [*(message.content for message in row.messages), row.rejected or ""]
        return next((match[0] for text in texts if (match := self._pattern.search(text))), None)
