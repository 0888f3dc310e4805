"""The loss against transformers' own, and what must not change it."""

import pytest
import torch
from transformers import PreTrainedModel

from finetune_trainer.model.batch import Padding, left_padded, pack
from finetune_trainer.model.encode import RowEncoder
from finetune_trainer.model.load import load_base
from finetune_trainer.model.loss import completion_loss, mean_completion_loss, row_losses
from finetune_trainer.rows import Row
from hack.models import tiny
from tests.trainer.workbench import tiny_tokenizer

ROWS = [
    RowEncoder(tiny_tokenizer()).encode(row)
    for row in (
        Row.pair("Where is my order? I have waited for three weeks.", "shipping"),
        Row.pair("Refund?", "billing, and then the sales team"),
    )
]
PADDED = Padding(tiny_tokenizer().pad_token_id)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_base(tiny(), torch.float32, torch.device("cpu"))


def test_the_loss_is_that_of_transformers_over_the_labelled_tokens(model: PreTrainedModel) -> None:
    batch = PADDED(ROWS)

    nats, tokens = completion_loss(model, batch)

    expected = model(**batch).loss
    torch.testing.assert_close(nats / tokens, expected)
    assert tokens == sum(label != -100 for row in ROWS for label in row.labels)


def test_the_gradient_is_that_of_transformers(model: PreTrainedModel) -> None:
    batch = PADDED(ROWS)
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.nn.Parameter)
    nats, tokens = completion_loss(model, batch)

    (ours,) = torch.autograd.grad(nats / tokens, weight)
    (theirs,) = torch.autograd.grad(model(**batch).loss, weight)

    torch.testing.assert_close(ours, theirs)


def test_padding_changes_nothing(model: PreTrainedModel) -> None:
    together, _ = completion_loss(model, PADDED(ROWS))
    alone = sum(completion_loss(model, PADDED([row]))[0] for row in ROWS)

    torch.testing.assert_close(together, alone)


def test_packing_changes_nothing(model: PreTrainedModel) -> None:
    padded, padded_tokens = completion_loss(model, PADDED(ROWS))
    packed, packed_tokens = completion_loss(model, pack(ROWS))

    torch.testing.assert_close(packed, padded)
    assert packed_tokens == padded_tokens


def test_every_token_counts_the_same_in_whatever_batch_it_is(model: PreTrainedModel) -> None:
    together = mean_completion_loss(model, [PADDED(ROWS)])
    apart = mean_completion_loss(model, [PADDED([row]) for row in ROWS])

    assert together == pytest.approx(apart, rel=1e-6)


def test_each_row_has_the_loss_that_it_has_alone(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        losses = row_losses(model, PADDED(ROWS))

    alone = [mean_completion_loss(model, [PADDED([row])]) for row in ROWS]
    torch.testing.assert_close(losses, torch.tensor(alone))


def test_prompts_are_padded_where_generation_does_not_begin() -> None:
    batch = left_padded([[7, 8, 9], [5]], pad_token_id=0)

    assert batch["input_ids"].tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
