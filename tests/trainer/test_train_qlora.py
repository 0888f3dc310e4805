# SPDX-License-Identifier: Apache-2.0
"""QLoRA: a base model in 4 bits, and an ordinary adapter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.model.adapted_layers import linear_layers
from finetune_trainer.model.loading import load_adapter, load_base, load_quantized_base
from finetune_trainer.train.model_setup import trainable_model
from tests.trainer.workbench import ROWS, Sheet, Workbench, weights
from tools.models import tiny

ADAPTER = LoRA(r=8, alpha=16, dropout=0)
QLORA = Method(type="QLoRA", lora=ADAPTER)
WITH_DORA = Method(type="QLoRA", lora=LoRA(r=8, alpha=16, dropout=0, dora=True))
CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def quantized_layers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Packed weights by name: two 4-bit numbers per byte."""
    return {
        name: weight.data
        for name, weight in model.named_parameters()
        if weight.dtype == torch.uint8 and "lora" not in name
    }


def test_the_linear_layers_of_the_base_are_in_four_bits_and_the_adapter_is_in_thirty_two() -> None:
    model = trainable_model(tiny(), QLORA, CPU)
    plain = trainable_model(tiny(), Method(lora=ADAPTER), CPU)

    assert isinstance(model, PeftModel)
    packed = quantized_layers(model)
    assert {name.split(".")[-3] for name in packed} == set(linear_layers(load_base(tiny(), None, CPU)))
    for name, weight in packed.items():
        assert weight.numel() * 2 == plain.get_parameter(name).numel()
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert {name: weight.shape for name, weight in trained.items()} == {
        name: weight.shape for name, weight in plain.named_parameters() if weight.requires_grad
    }


def test_the_base_is_quantized_to_the_same_numbers_each_time() -> None:
    first, second = (quantized_layers(trainable_model(tiny(), QLORA, CPU)) for _ in range(2))

    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_the_same_with_and_without_validation(bench: Workbench) -> None:
    """bitsandbytes would convert weights to a form without gradients at the first inference."""
    without = bench.train_config(dataset=bench.dataset(ROWS), method=QLORA)
    beside = bench.train_config(dataset=bench.dataset(ROWS, ROWS[:5]), method=QLORA)

    first = bench.train(without.model_copy(update={"run": "without"})).checkpoints[-1]
    second = bench.train(beside).checkpoints[-1]

    assert second.digest == first.digest


@pytest.mark.parametrize("method", [QLORA, WITH_DORA], ids=["LoRA", "DoRA"])
def test_it_is_evaluated_on_the_weights_that_it_was_trained_on(bench: Workbench, method: Method) -> None:
    base, dataset = bench.model(), bench.dataset(ROWS, ROWS[:6], ROWS[:6])
    config = bench.train_config(base, dataset, method=method, epochs=10, learning_rate=1e-2)
    (checkpoint,) = bench.train(config).checkpoints

    def losses(**settings: Any) -> dict[str, float]:
        # Row by row: bfloat16 rounds the products of 4-bit weights otherwise in a batch of other rows.
        result = bench.evaluate(base, dataset, checkpoint, metrics=("loss",), batch_size=1, **settings)
        return {score.subject: score.value for score in result.scores}

    quantized, whole = losses(quantized_base=True), losses()

    assert quantized["Tuned"] == pytest.approx(checkpoint.validation_loss, rel=1e-3)
    assert whole["Tuned"] != pytest.approx(checkpoint.validation_loss, rel=1e-3)
    # The gain is that of the adapter: the base model is measured in 4 bits too.
    assert quantized["Base"] != pytest.approx(whole["Base"], rel=1e-3)
    assert quantized["Tuned"] < quantized["Base"] / 2


def test_a_published_dora_adapter_has_the_logits_of_peft_over_four_bits(bench: Workbench) -> None:
    config = bench.train_config(method=WITH_DORA, epochs=4, learning_rate=1e-2)
    folder = bench.checkpoint(bench.train(config).checkpoints[-1])

    def logits(*, as_peft_computes: bool) -> torch.Tensor:
        model = load_adapter(load_quantized_base(tiny(), CPU), folder, merges=as_peft_computes).eval()
        with torch.inference_mode():
            computed: torch.Tensor = model(input_ids=torch.arange(1, 40)[None]).logits.float()
        return computed

    expected = logits(as_peft_computes=True)
    torch.testing.assert_close(logits(as_peft_computes=False), expected, rtol=0.02, atol=0.05)
    with torch.inference_mode():
        base = load_quantized_base(tiny(), CPU)(input_ids=torch.arange(1, 40)[None]).logits.float()
    assert not torch.allclose(base, expected, atol=0.5)


def test_what_it_learned_works_on_the_base_model_as_it_is(bench: Workbench) -> None:
    base, dataset = bench.model(), bench.dataset(ROWS, (), ROWS[:6])
    config = bench.train_config(base, dataset, method=QLORA, epochs=10, learning_rate=1e-2)

    (checkpoint,) = bench.train(config).checkpoints

    scores = bench.evaluate(base, dataset, checkpoint, metrics=("loss",)).scores
    loss = {score.subject: score.value for score in scores}
    assert checkpoint.type == "Adapter"
    assert loss["Tuned"] < loss["Base"] / 2
    assert {tensor.dtype for tensor in weights(bench.checkpoint(checkpoint)).values()} == {torch.float32}


def test_an_adapter_of_lora_is_continued_over_four_bits(bench: Workbench) -> None:
    dataset = bench.dataset(ROWS, ROWS)
    before = bench.train_config(dataset=dataset, method=Method(lora=ADAPTER), epochs=6, learning_rate=1e-2)
    first, sheet = Sheet(), Sheet()
    parent = bench.train(before.model_copy(update={"run": "parent"}), first).checkpoints[-1]
    named = ParentCheckpoint(name="routing-1f1f-6", digest=parent.digest)

    bench.train(bench.train_config(dataset=dataset, method=QLORA).model_copy(update={"parent": named}), sheet)

    assert sheet.seen[0].loss < first.seen[0].loss / 2  # type: ignore[operator]
