# SPDX-License-Identifier: Apache-2.0
"""How far rounding alone moves the predictions of a probe: the measurements behind the tolerances.

`pytest -s tests/trainer/test_probe_tolerances.py -m ""` prints them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.model.probe import ENGINE, dtype_name, log_probabilities, probe_prompts
from finetune_trainer.model.probe_record import NO_CHANGE_NATS, TOLERANCES
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.train.model_setup import trainable_model
from finetune_trainer.train.states.weights import training_weights
from tools.models import gemma, tiny

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)
MODELS = {"tiny": tiny, "gemma": gemma}
LARGE = pytest.param("gemma", marks=pytest.mark.full)


class Predictions:
    """What a model predicts after the fixed prompts, computed in different ways."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tokenizer = load_tokenizer(folder)
        self.prompts = probe_prompts(tokenizer)
        self.pad = int(tokenizer.pad_token_id)

    def of(self, model: torch.nn.Module) -> Tensor:
        return log_probabilities(model.eval(), self.prompts, self.pad)  # type: ignore[arg-type]

    def in_other_ways(self, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """The same weights in the same dtype."""
        model = load_base(self.folder, dtype, CPU)
        with one_thread():
            yield "one thread", self.of(model)
        alone = [log_probabilities(model, [prompt], self.pad) for prompt in self.prompts]
        yield "one prompt at a time", torch.cat(alone)
        model.set_attn_implementation("eager")
        yield "eager attention", self.of(model)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def difference(recorded: Tensor, now: Tensor) -> float:
    """Largest difference of the five most likely tokens, as `largest_difference` compares them."""
    top = recorded.topk(5)
    return float((top.values - now.gather(1, top.indices)).abs().max())


def report(model: str, dtype: torch.dtype, what: str, value: float) -> float:
    print(f"{model}, {dtype}: {what}: {value:.3g} nats")
    return value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ["tiny", LARGE])
def test_rounding_stays_below_half_of_the_tolerance(model: str, dtype: torch.dtype) -> None:
    predictions = Predictions(MODELS[model]())
    recorded = predictions.of(load_base(predictions.folder, dtype, CPU))

    moved = [
        report(model, dtype, what, difference(recorded, now))
        for what, now in predictions.in_other_ways(dtype)
    ]
    if dtype == torch.bfloat16:
        # A CPU that multiplies bfloat16 slowly computes in float32.
        exact = load_base(predictions.folder, torch.bfloat16, CPU).float()  # type: ignore[no-untyped-call]
        moved.append(report(model, dtype, "in float32", difference(recorded, predictions.of(exact))))

    assert max(moved) <= TOLERANCES[ENGINE, "cpu", dtype_name(dtype)] / 2


@pytest.mark.parametrize("model", ["tiny", LARGE])
def test_storing_a_whole_model_in_16_bits_stays_below_half_of_the_tolerance(model: str) -> None:
    predictions = Predictions(MODELS[model]())
    trained = load_base(predictions.folder, torch.float32, CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1 + 1e-3 * torch.randn_like(parameter))
    recorded = predictions.of(trained)

    stored = predictions.of(trained.to(torch.bfloat16))  # type: ignore[arg-type] # its stub knows one overload
    moved = report(
        model, torch.bfloat16, "trained in float32, stored in 16 bits", difference(recorded, stored)
    )

    assert moved <= TOLERANCES[ENGINE, "cpu", "bfloat16"] / 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("model", ["tiny", LARGE])
def test_an_adapter_without_effect_is_within_the_limit_and_a_weak_one_is_not(
    tmp_path: Path, model: str, dtype: torch.dtype, *, dora: bool
) -> None:
    source = tmp_path / "base"
    load_base(MODELS[model](), dtype, CPU).save_pretrained(source)
    predictions = Predictions(MODELS[model]())
    trained = trainable_model(source, Method(lora=LoRA(r=8, alpha=16, dora=dora)), CPU)
    assert isinstance(trained, PeftModel)
    kind = "DoRA" if dora else "LoRA"
    changes = []
    for step in (0, 1e-5):
        # The first step of Adam moves each weight by the learning rate.
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.data = step * torch.sign(torch.randn_like(parameter))
        folder = tmp_path / f"after-{step:g}"
        folder.mkdir()
        training_weights(trained, "sha256:" + 64 * "0", source).write(folder)
        loaded = load_adapter(load_base(source, None, CPU), folder)
        tuned = predictions.of(loaded)
        with loaded.disable_adapter():
            change = float((tuned - predictions.of(loaded)).abs().max())
        changes.append(report(model, dtype, f"{kind} with B of {step:g} and its base", change))

    limit = NO_CHANGE_NATS.get(dtype_name(dtype), 0)
    assert changes[1] > limit
    # In 16 bits, DoRA without effect rounds otherwise than its base model.
    assert changes[0] <= limit or (dora and dtype == torch.bfloat16)
