# SPDX-License-Identifier: Apache-2.0
"""The chat template of a tokenizer, and the tokens that end an answer."""

import shutil
from importlib import resources
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.chat_template import load_tokenizer, render, stop_token_ids, template_name
from tools.models import tiny

CHATS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": " Where is it? \n"}, {"role": "assistant", "content": "shipping"}),
    (
        {"role": "system", "content": "Name the team."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "shipping\n"},
        {"role": "user", "content": "And my money?"},
    ),
)


def base_tokenizer(folder: Path, *control_tokens: str, **settings: str) -> PreTrainedTokenizerBase:
    """The tiny model's tokenizer as in a base model: no chat template, and other control tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny())
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": list(control_tokens)})
    for name, token in settings.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def test_the_models_own_template_is_kept() -> None:
    tokenizer = load_tokenizer(tiny())

    assert template_name(tokenizer) == "model"
    assert render(tokenizer, CHATS[0]) == "<s><user> Where is it? \n</s><assistant>shipping</s>"


@pytest.mark.parametrize("messages", CHATS)
@pytest.mark.parametrize("ask", [False, True])
def test_the_gemma_template_writes_what_the_published_one_writes(
    tmp_path: Path, messages: tuple[dict[str, str], ...], ask: bool
) -> None:
    tokenizer = base_tokenizer(tmp_path, "<start_of_turn>", "<end_of_turn>")
    published = (resources.files("trl") / "chat_templates" / "gemma3.jinja").read_text()

    assert template_name(tokenizer) == "gemma"
    assert render(tokenizer, messages, add_generation_prompt=ask) == tokenizer.apply_chat_template(
        list(messages), chat_template=published, tokenize=False, add_generation_prompt=ask
    )


def test_a_vocabulary_with_chatml_tokens_gets_chatml(tmp_path: Path) -> None:
    tokenizer = base_tokenizer(tmp_path, "<|im_start|>", "<|im_end|>")

    assert template_name(tokenizer) == "chatml"
    assert render(tokenizer, CHATS[1], add_generation_prompt=True) == (
        "<|im_start|>system\nName the team.<|im_end|>\n<|im_start|>user\nWhere is it?<|im_end|>\n"
        "<|im_start|>assistant\nshipping\n<|im_end|>\n<|im_start|>user\nAnd my money?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_any_other_base_model_gets_the_plain_template(tmp_path: Path) -> None:
    tokenizer = base_tokenizer(tmp_path)

    assert template_name(tokenizer) == "plain"
    assert render(tokenizer, CHATS[1], add_generation_prompt=True) == (
        "<s>### System:\nName the team.\n\n### User:\nWhere is it?\n\n### Assistant:\nshipping</s>\n\n"
        "### User:\nAnd my money?\n\n### Assistant:\n"
    )


def test_an_answer_ends_at_its_turn_at_the_sequence_and_where_the_model_says(tmp_path: Path) -> None:
    tokenizer = base_tokenizer(tmp_path, "<start_of_turn>", "<end_of_turn>", "<stop>")
    own = tokenizer.convert_tokens_to_ids("<stop>")

    assert stop_token_ids(tokenizer, None) == [
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
    ]
    assert own in stop_token_ids(tokenizer, GenerationConfig(eos_token_id=own))  # type: ignore[no-untyped-call]
    assert own in stop_token_ids(tokenizer, GenerationConfig(eos_token_id=[own, 1]))  # type: ignore[no-untyped-call]


def test_padding_is_not_the_end_of_the_sequence_where_the_vocabulary_has_another_token(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny(), folder)
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token": "<pad>",', ""))

    assert AutoTokenizer.from_pretrained(folder).pad_token is None
    assert load_tokenizer(folder).pad_token == "<pad>"


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="tokenizer") as caught:
        load_tokenizer(tmp_path)

    assert caught.value.reason == FailureReason.BASE_MODEL_INVALID


def test_a_template_that_cannot_write_a_chat_is_refused(tmp_path: Path) -> None:
    shutil.copytree(tiny(), tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no chats') }}")

    with pytest.raises(StageFailure, match="no chats"):
        load_tokenizer(tmp_path)
