# SPDX-License-Identifier: Apache-2.0
"""When the rows of a batch are packed."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from finetune_trainer.model.loading import load_base
from finetune_trainer.tokens.batching import Padding, pack
from finetune_trainer.tokens.encoding import EncodedRow, RowEncoder
from finetune_trainer.train.collation import choose_collation, isolates_packed_rows
from tests.trainer.workbench import ROWS, tiny_tokenizer
from tools.models import tiny

ENCODED = [RowEncoder(tiny_tokenizer()).encode(row) for row in ROWS]
LONG = EncodedRow([1] * 300, [-100] * 300)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_base(tiny(), torch.float32, torch.device("cpu"))


class Forgetful(torch.nn.Module):
    """A model that mixes packed rows, as recurrent models do."""

    device = torch.device("cpu")

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model
        self.config = model.config

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, *, use_cache: bool) -> object:
        mask = torch.ones_like(input_ids)
        return self._model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=use_cache
        )


def test_short_rows_are_packed(model: PreTrainedModel) -> None:
    assert choose_collation(model, ENCODED, 8, 0) is pack


def test_long_rows_are_padded(model: PreTrainedModel) -> None:
    assert isinstance(choose_collation(model, [LONG, *ENCODED[:1]], 8, 0), Padding)


def test_single_rows_have_nothing_to_be_packed_with(model: PreTrainedModel) -> None:
    assert isinstance(choose_collation(model, ENCODED, 1, 0), Padding)


def test_a_model_that_mixes_packed_rows_gets_them_padded(model: PreTrainedModel) -> None:
    leaking = Forgetful(model)

    assert isinstance(choose_collation(leaking, ENCODED, 8, 0), Padding)  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_keeps_packed_rows_apart(attention: str, dtype: torch.dtype) -> None:
    model = load_base(tiny(), dtype, torch.device("cpu"))
    model.set_attn_implementation(attention)

    assert isolates_packed_rows(model)


def test_learned_positions_keep_packed_rows_apart_too() -> None:
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    )

    assert isolates_packed_rows(model)
