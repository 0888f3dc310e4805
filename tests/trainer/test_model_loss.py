# SPDX-License-Identifier: Apache-2.0
"""The loss compared with that of transformers, and what must not change it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PreTrainedModel

from finetune_trainer.model import completion_loss as head_module
from finetune_trainer.model.completion_loss import (
    ChunkedHead,
    chunked_head,
    chunked_losses,
    completion_loss,
    row_loss_sums,
    tiled_losses,
    total_completion_loss,
)
from finetune_trainer.model.loading import load_base
from finetune_trainer.rows import Row
from finetune_trainer.tokens.batching import Padding, pack, pad_left
from finetune_trainer.tokens.encoding import RowEncoder
from tests.trainer.gpuwrapping import as_a_gpu_trains
from tests.trainer.workbench import tiny_tokenizer
from tools.models import tiny
from tools.models.tiny import VOCABULARY

ROWS = [
    RowEncoder(tiny_tokenizer()).encode(row)
    for row in (
        Row.pair("Where is my order? I have waited for three weeks.", "shipping"),
        Row.pair("Refund?", "billing, and then the sales team"),
    )
]
PADDED = Padding(tiny_tokenizer().pad_token_id)


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return load_base(tiny(), torch.float32, CPU)


def inputs_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def known_head(model: PreTrainedModel) -> ChunkedHead:
    head = chunked_head(model, inputs_of(pack(ROWS)))
    assert head is not None
    return head


@pytest.fixture(params=[1, 2, 1000])
def positions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of positions that the head reads at once."""
    monkeypatch.setattr(head_module, "MAX_LOGITS", request.param * VOCABULARY)
    number: int = request.param
    return number


@pytest.fixture(params=[chunked_losses, tiled_losses], ids=["on a CPU", "on a GPU"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to compute the head; TRL computes its tiles with PyTorch if there is no GPU."""
    monkeypatch.setattr(head_module, "chunked_losses", request.param)
    monkeypatch.setattr(head_module, "TILE_TOKENS", 100)


@pytest.mark.usefixtures("positions", "anywhere")
@pytest.mark.parametrize("trained", ["all weights", "all but the head", "the head alone"])
def test_a_head_over_few_positions_gives_the_same_loss_and_gradients(trained: str) -> None:
    model = load_base(tiny(), torch.float32, CPU)
    lm_head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCABULARY))
    for parameter in model.parameters():
        parameter.requires_grad_(trained != "the head alone")
    for parameter in lm_head.parameters():
        parameter.requires_grad_(trained != "all but the head")
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole, tokens = completion_loss(model, PADDED(ROWS))

    few, few_tokens = completion_loss(model, PADDED(ROWS), known_head(model))

    torch.testing.assert_close(few, whole)
    assert few_tokens == tokens
    for ours, expected in zip(
        torch.autograd.grad(3 * few, weights), torch.autograd.grad(3 * whole, weights), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def wrapped() -> Iterator[Callable[[PreTrainedModel], PreTrainedModel]]:
    """A model as accelerate wraps it on a GPU: it computes in bfloat16 and returns float32."""
    with as_a_gpu_trains():
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        yield accelerator.prepare_model


@pytest.mark.usefixtures("positions", "anywhere")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_head_over_few_positions_multiplies_as_the_whole_one_does_on_a_gpu(
    dtype: torch.dtype, wrapped: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model = load_base(tiny(), dtype, CPU)
    lm_head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, VOCABULARY, dtype=dtype))
    head = known_head(model)
    wrapped(model)
    weights = list(model.parameters())
    whole, _ = completion_loss(model, PADDED(ROWS))

    few, _ = completion_loss(model, PADDED(ROWS), head)

    assert whole.dtype == few.dtype == torch.float32
    # Float32 logits would differ by 1e-3. TRL rounds once more, after it has added the bias.
    torch.testing.assert_close(few, whole, rtol=2e-4, atol=0)
    assert total_completion_loss(model, [PADDED(ROWS)], head) == pytest.approx(
        total_completion_loss(model, [PADDED(ROWS)]), rel=2e-4
    )
    model.train()
    for ours, expected in zip(
        torch.autograd.grad(3 * completion_loss(model, PADDED(ROWS), head)[0], weights),
        torch.autograd.grad(3 * completion_loss(model, PADDED(ROWS))[0], weights),
        strict=True,
    ):
        assert ours.dtype == dtype
        assert (ours - expected).norm() <= 0.02 * expected.norm()


SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.mark.usefixtures("anywhere")
def test_a_model_that_multiplies_its_logits_has_the_same_loss_and_gradients() -> None:
    torch.manual_seed(0)
    scaled = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=0.1))
    weights = list(scaled.parameters())

    few, _ = completion_loss(scaled, PADDED(ROWS), known_head(scaled))

    whole = completion_loss(scaled, PADDED(ROWS))[0]
    torch.testing.assert_close(few, whole)
    for ours, expected in zip(
        torch.autograd.grad(few, weights), torch.autograd.grad(whole, weights), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_model_that_caps_its_logits_makes_all_of_them() -> None:
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=30.0))

    assert chunked_head(capped, inputs_of(pack(ROWS))) is None


def test_the_head_of_a_model_without_weights_is_known() -> None:
    """As a model on the meta device is before each process gets its shards."""
    with torch.device("meta"):
        scaled = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=0.1))
        capped = Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=30.0))
    assert chunked_head(capped, inputs_of(pack(ROWS))) is None
    head = known_head(scaled)
    torch.manual_seed(0)
    real = GraniteForCausalLM(scaled.config)

    scaled.to_empty(device="cpu")
    scaled.load_state_dict(real.state_dict())
    for name, buffer in real.named_buffers():
        scaled.get_buffer(name).copy_(buffer)

    few, _ = completion_loss(scaled, PADDED(ROWS), head)
    torch.testing.assert_close(few, completion_loss(scaled, PADDED(ROWS))[0])


def test_after_the_loss_the_model_gives_logits_again(model: PreTrainedModel) -> None:
    completion_loss(model, PADDED(ROWS), known_head(model))

    assert model(**inputs_of(pack(ROWS))).logits.shape[-1] == VOCABULARY


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
    together = total_completion_loss(model, [PADDED(ROWS)])
    apart = total_completion_loss(model, [PADDED([row]) for row in ROWS])

    assert together == pytest.approx(apart, rel=1e-6)


@pytest.mark.parametrize("chunked", [False, True])
def test_each_row_has_the_loss_that_it_has_alone(model: PreTrainedModel, chunked: bool) -> None:
    head = known_head(model) if chunked else None
    with torch.inference_mode():
        sums, tokens = row_loss_sums(model, PADDED(ROWS), head)

    alone = [total_completion_loss(model, [PADDED([row])]) for row in ROWS]
    torch.testing.assert_close(sums, torch.tensor([loss_sum for loss_sum, _ in alone]))
    assert tokens.tolist() == [count for _, count in alone]


@pytest.mark.usefixtures("positions", "anywhere")
@pytest.mark.parametrize("trained", ["all weights", "all but the head"])
def test_rows_of_different_weight_have_the_same_gradients_as_with_the_whole_head(trained: str) -> None:
    model = load_base(tiny(), torch.float32, CPU)
    for parameter in model.get_output_embeddings().parameters():  # type: ignore[no-untyped-call]
        parameter.requires_grad_(trained == "all weights")
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    of_rows = [row_loss_sums(model, PADDED(ROWS), head)[0] for head in (known_head(model), None)]

    few, whole = (torch.autograd.grad(3 * first - 2 * second, weights) for first, second in of_rows)
    for ours, expected in zip(few, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_prompts_are_padded_where_generation_does_not_begin() -> None:
    batch = pad_left([[7, 8, 9], [5]], pad_token_id=0)

    assert batch["input_ids"].tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
