# SPDX-License-Identifier: Apache-2.0
"""Models whose layers are on several devices.

Where no machine has two accelerators, two kinds of tests take their place: fake tensors on two devices, where
an operation between devices fails, and real numbers on one CPU, with the same hooks between layers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from torch._subclasses import fake_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.contract.method import LoRA
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.evaluate import stage
from finetune_trainer.model import completion_loss, loading
from finetune_trainer.model.completion_loss import chunked_head, row_loss_sums
from finetune_trainer.model.generation import GenerationBatch
from finetune_trainer.model.loading import (
    connect_layers,
    load_placed,
    load_quantized_base,
    place_layers,
    read_empty_model,
    visible_devices,
    weights_bytes,
)
from finetune_trainer.preflight.estimate.fake_tensors import fake_tensors
from finetune_trainer.runtime.termination import StageFailure
from tests.methods import method_of
from tests.trainer.workbench import ROWS, Workbench
from tools.models import tiny

CPU = torch.device("cpu")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))


@pytest.fixture(scope="module")
def empty() -> PreTrainedModel:
    return read_empty_model(tiny())


@pytest.fixture
def tied(tmp_path: Path) -> PreTrainedModel:
    """A model whose output head is its embedding."""
    config = read_empty_model(tiny()).config
    config.tie_word_embeddings = True
    config.save_pretrained(tmp_path)
    return read_empty_model(tmp_path)


class SameDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Indices must be on the device of what they index, or on the CPU: fake tensors do not check it."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.index.Tensor:
            assert all(each is None or each.device in (CPU, args[0].device) for each in args[1])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tensors are fake, and two accelerators exist."""
    # Triton's kernels need a driver.
    monkeypatch.setattr(completion_loss, "tiled_losses", completion_loss.chunked_losses)
    # Numbers would be copied to the device for real.
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1)
    # accelerate finds tied weights by their address.
    monkeypatch.setattr(torch.Tensor, "data_ptr", torch.Tensor.__hash__)
    with fake_tensors(masks=True), SameDevice():  # type: ignore[no-untyped-call]
        yield


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """A fake model of this kind with its first layers on one accelerator and its last ones on the other."""
    size = weights_bytes(model)
    device_map = place_layers(model, GPUS, [size, size])
    assert set(device_map.values()) == set(GPUS)
    spread: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        model.config, dtype=model.dtype
    ).eval()
    for name, device in device_map.items():
        for module in spread.get_submodule(name).modules():
            move(module, device)
    spread.tie_weights()
    connect_layers(spread, device_map)
    return spread


def move(module: nn.Module, device: torch.device) -> None:
    """Fake tensors cannot be moved by modules."""
    for name, weight in module._parameters.items():
        if weight is not None:
            module._parameters[name] = nn.Parameter(
                torch.empty_like(weight, device=device), requires_grad=False
            )
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = torch.empty_like(buffer, device=device)


def test_layers_are_whole_and_each_device_has_about_the_same_bytes(empty: PreTrainedModel) -> None:
    size = weights_bytes(empty)

    placed = place_layers(empty, GPUS, [size, size])

    layers = [placed[f"model.layers.{index}"] for index in range(empty.config.num_hidden_layers)]
    assert layers == sorted(layers, key=GPUS.index)
    assert set(layers) == set(GPUS)


def test_a_tied_head_is_where_its_embedding_is(tied: PreTrainedModel) -> None:
    size = weights_bytes(tied)

    placed = place_layers(tied, GPUS, [size, size])

    assert placed.get("lm_head", placed["model.embed_tokens"]) == placed["model.embed_tokens"]
    assert set(placed.values()) == set(GPUS)


def test_layers_that_do_not_fit_are_refused_with_what_is_missing(empty: PreTrainedModel) -> None:
    with pytest.raises(StageFailure, match=r"its 2 devices have .* are missing") as caught:
        place_layers(empty, GPUS, [weights_bytes(empty) // 3] * 2)

    assert caught.value.reason == FailureReason.OUT_OF_MEMORY


def test_a_layer_larger_than_each_device_is_not_divided(empty: PreTrainedModel) -> None:
    with pytest.raises(StageFailure, match="its layers, which are not divided, do not fit"):
        place_layers(empty, [CPU] * 40, [weights_bytes(empty) // 20] * 40)


def test_nothing_is_loaded_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "memory_use", lambda _: (0, 100_000))
    monkeypatch.setattr(loading, "load_base", None)

    with pytest.raises(StageFailure, match=r"the weights of the model take 0\.00 GiB"):
        load_placed(tiny(), GPUS)


def test_the_bytes_of_weights_in_four_bits_are_those_that_are_loaded(
    monkeypatch: pytest.MonkeyPatch, empty: PreTrainedModel
) -> None:
    from finetune_trainer.model import loading

    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda _: True)
    loaded = load_quantized_base(tiny(), CPU)

    tensors = (*loaded.parameters(), *loaded.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    # The buffers of the rotary embedding are float32.
    assert weights_bytes(empty, quantized=True) == pytest.approx(size, rel=1e-3)


def test_all_accelerators_that_the_process_sees_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert visible_devices() == GPUS


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("chunked", [True, False])
def test_losses_never_mix_devices(request: pytest.FixtureRequest, tie: bool, chunked: bool) -> None:
    empty = request.getfixturevalue("tied" if tie else "empty")
    request.getfixturevalue("fakes")
    model = spread(empty)
    ids = torch.zeros(2, 1, dtype=torch.long, device=GPUS[0])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    with torch.inference_mode():
        found = chunked_head(model, inputs)
        sums, tokens = row_loss_sums(model, {**inputs, "labels": ids}, found if chunked else None)

    assert found is not None
    assert (sums.device, tokens.device) == (GPUS[0], GPUS[0])


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("mixed", [False, True])
def test_the_engine_keeps_each_layer_of_the_cache_on_its_device(empty: PreTrainedModel, mixed: bool) -> None:
    model: nn.Module = spread(empty)
    if mixed:
        model = get_peft_model(spread(empty), LoraConfig(task_type="CAUSAL_LM", r=2)).eval()
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for part in (*layer.lora_A.values(), *layer.lora_B.values()):
                    move(part, next(layer.get_base_layer().parameters()).device)
    batch = GenerationBatch(model, mixed=mixed)

    for prompt in ([1, 2, 3], [1, 2], [1]):
        batch.join([prompt], ["default"])
    batch.step([1, 2, 3])
    batch.keep([0, 2])
    logits = batch.step([1, 2])

    assert logits.shape == (2, empty.config.vocab_size)
    assert {keys.device for keys, _, _ in batch._cache} == set(GPUS)


@pytest.mark.parametrize("method", ["LoRA", "QLoRA", "Full"])
def test_the_scores_are_those_of_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    bench = Workbench(tmp_path)
    base, dataset = bench.model(), bench.dataset(ROWS, (), ROWS[:4])
    config = bench.train_config(base, dataset, method=method_of(method, lora=LoRA(r=4, alpha=8)))
    (checkpoint,) = bench.train(config).checkpoints
    settings = {"quantized_base": method == "QLoRA"}
    expected = bench.evaluate(base, dataset, checkpoint, **settings)
    monkeypatch.setattr(stage, "visible_devices", lambda: (CPU, CPU))

    assert bench.evaluate(base, dataset, checkpoint, **settings).scores == expected.scores
