# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps whose rows are split into batches by a token budget."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.model import attention
from finetune_trainer.model.attention import (
    VARLEN,
    AttentionShape,
    check_gradients,
    get_attention,
    set_attention,
)
from finetune_trainer.model.loading import load_base
from finetune_trainer.rows import Row
from finetune_trainer.tokens.batching import (
    TokenBudget,
    divide_evenly,
    group_by_length,
    model_inputs,
    pack,
    pack_with_bounds,
    pad_without_mask,
)
from finetune_trainer.tokens.encoding import EncodedRow, RowEncoder
from finetune_trainer.train import collation
from finetune_trainer.train.batches import Division, RowLimit
from finetune_trainer.train.collation import isolates_packed_rows, pack_by_varlen, probe_head
from finetune_trainer.train.trainer import CompletionTrainer
from tests.trainer.gpuwrapping import reference_attention, tiny_in_bfloat16, varlen_kernel
from tests.trainer.test_train_distributed import Pods, pods
from tests.trainer.test_train_resume import METHODS, preempted
from tests.trainer.workbench import ROWS, Workbench, elsewhere, tiny_tokenizer, weights
from tools.models import tiny

CPU = torch.device("cpu")
LONGER = tuple(
    Row.pair(f"{row.messages[0].content} " * (1 + index % 5), row.output) for index, row in enumerate(ROWS)
)
"""Rows of very different lengths."""
ENCODED = [RowEncoder(tiny_tokenizer()).encode(row) for row in LONGER]
LONGEST = max(row.num_tokens for row in ENCODED)


def padded(rows: Sequence[EncodedRow]) -> dict[str, Any]:
    return pad_without_mask(rows, 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("split", [divide_evenly, group_by_length])
def test_every_row_is_in_one_batch_within_the_budget(seed: int, split: Any) -> None:
    generator = random.Random(seed)  # noqa: S311
    lengths = [generator.randint(1, 100) for _ in range(generator.randint(1, 60))]

    batches = split(lengths, 80, 1 + seed % 3)

    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        tokens = [lengths[row] for row in batch]
        total = sum(tokens) if split is divide_evenly else max(tokens) * len(tokens)
        assert total <= 80 or len(batch) == 1


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_get_batches_of_similar_sizes(processes: int) -> None:
    lengths = [50, 7, 8, 30, 20, 15, 40, 9, 10, 41]

    batches = TokenBudget(1000, padded, packs=True).split(lengths, processes)

    sizes = [sum(lengths[row] for row in batch) for batch in batches]
    assert len(batches) == processes
    assert max(sizes) - min(sizes) <= 10


def test_the_largest_batch_comes_first() -> None:
    lengths = [3, 30, 9, 9, 9, 1]

    assert TokenBudget(32, padded, packs=False).split(lengths) == [[1], [2, 3, 4], [0, 5]]


def model_for() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def gradients_of_a_step(tmp_path: Path, max_tokens: int | None, *, packs: bool = True) -> dict[str, Tensor]:
    hyperparameters = Hyperparameters(
        warmup_ratio=0.05,
        scheduler="Linear",
        weight_decay=0,
        epochs=1,
        learning_rate=1e-3,
        batch_size=len(ENCODED),
        max_sequence_length=128,
        seed=1,
        total_steps=1,
        save_every_steps=1,
        max_batch_tokens=max_tokens,
    )
    collate: Any = pack if packs else padded
    division: Division = RowLimit(len(ENCODED) // 2)
    if max_tokens is not None:
        division = TokenBudget(max_tokens, collate, packs=packs)
    model = model_for()
    trainer = CompletionTrainer(
        model, ENCODED, collate, hyperparameters, tmp_path, division=division, device=CPU
    )
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        found.update({name: grad.clone() for name, grad in gradients.items() if grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)  # type: ignore[union-attr]
    trainer.train()
    assert trainer.state.global_step == 1
    figures = trainer.take_step()
    assert figures.tokens == sum(row.num_tokens for row in ENCODED)
    return found


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("max_tokens", [1, LONGEST, 3 * LONGEST, 10**6])
def test_gradients_of_a_step_do_not_depend_on_the_budget(
    tmp_path: Path, max_tokens: int, *, packs: bool
) -> None:
    expected = gradients_of_a_step(tmp_path, None)

    actual = gradients_of_a_step(tmp_path, max_tokens, packs=packs)

    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-4, atol=1e-6)


def config_for(bench: Workbench, method: str = "LoRA", **settings: Any) -> TrainConfig:
    chosen = {"max_batch_tokens": LONGEST, "epochs": 2, **settings}
    return bench.train_config(
        dataset=bench.dataset(LONGER, LONGER[:5]), method=METHODS[method], max_sequence_length=128, **chosen
    )


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_a_run_goes_on_exactly_after_a_stop(tmp_path: Path, method: str) -> None:
    bench = Workbench(tmp_path)
    other = elsewhere(bench, "uninterrupted")
    straight = other.train(config_for(other, method))
    config = config_for(bench, method)
    preempted(bench, config, 2)
    preempted(bench, config, 4)

    assert bench.train(config) == straight.model_copy(update={"restarts": 2})


def test_it_learns_what_a_run_with_fixed_batches_learns(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    other = elsewhere(bench, "fixed")
    fixed = other.train(config_for(other, "Full", max_batch_tokens=None))

    budgeted = bench.train(config_for(bench, "Full"))

    assert (budgeted.steps, budgeted.tokens) == (fixed.steps, fixed.tokens)
    assert budgeted.validation_loss == pytest.approx(fixed.validation_loss, rel=1e-3)
    tensors = weights(bench.checkpoint(budgeted.checkpoints[-1]))
    for name, tensor in weights(other.checkpoint(fixed.checkpoints[-1])).items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-2, atol=1e-4)


def test_varlen_attention_gets_the_bounds_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "varlen_attn", reference_attention)
    model = model_for()
    model.eval()  # type: ignore[no-untyped-call]
    rows = ENCODED[:3]
    expected = torch.cat([model(**inputs(pack([row]))).logits[0] for row in rows])

    set_attention(model, VARLEN)
    actual = model(**inputs(pack_with_bounds(rows))).logits[0]

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert isolates_packed_rows(model, pack_with_bounds)


@pytest.mark.parametrize("stored", [tiny, tiny_in_bfloat16])
def test_varlen_attention_computes_in_bfloat16_as_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, stored: Callable[[], Path]
) -> None:
    """The kernel needs one dtype of 16 bits, also for the float32 weights of a whole model."""
    dtypes: list[torch.dtype] = []

    def kernel(query: Tensor, *others: Any, **settings: Any) -> Tensor:
        dtypes.append(query.dtype)
        return varlen_kernel(query, *others, **settings)

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    model = load_base(stored(), torch.float32 if stored is tiny else None, CPU)
    set_attention(model, VARLEN)

    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs(pack_with_bounds(ENCODED[:3]))).logits.float().sum().backward()

    assert set(dtypes) == {torch.bfloat16}


def without_gradient_of_the_second_row(query: Tensor, *others: Any, **settings: Any) -> Tensor:
    output = varlen_kernel(query, *others, **settings)
    first_end = others[2].tolist()[1]
    return torch.cat([output[:first_end], output[first_end:].detach()])


def fails_backward(*states: Any, **settings: Any) -> Tensor:
    def fail(_: Tensor) -> None:
        raise RuntimeError("no backward kernel for this head size")

    output = varlen_kernel(*states, **settings)
    if output.requires_grad:
        output.register_hook(fail)  # type: ignore[no-untyped-call]
    return output


@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (without_gradient_of_the_second_row, "gradients of packed rows differ from those of rows alone by"),
        (fails_backward, "no backward kernel for this head size"),
    ],
)
def test_a_kernel_that_is_right_only_forward_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kernel: Callable[..., Tensor],
    problem: str,
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    monkeypatch.setattr(collation, "mixed_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
    caplog.set_level("INFO")
    model = model_for()

    assert not pack_by_varlen(model)
    assert get_attention(model) == "sdpa"
    assert problem in caplog.text


@pytest.mark.parametrize("window", [None, 64])
def test_gradients_of_packed_rows_are_those_of_rows_alone(
    monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    shape = AttentionShape(4, 2, 16, 16, 0.25, window)
    monkeypatch.setattr(attention, "varlen_attn", varlen_kernel)
    if window is None:
        check_gradients(shape, CPU)
        return
    # The reference of this test has no window, as a kernel that ignores it.
    monkeypatch.setattr(attention, "varlen_attn", ignoring_the_window)
    with pytest.raises(RuntimeError, match="differ"):
        check_gradients(shape, CPU)


def ignoring_the_window(*states: Any, window_size: tuple[int, int], **settings: Any) -> Tensor:
    return varlen_kernel(*states, window_size=(-1, 0), **settings)


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}


def test_a_model_that_varlen_attention_cannot_compute_keeps_its_own() -> None:
    """PyTorch has no kernel for a CPU."""
    model = model_for()

    assert not pack_by_varlen(model)
    assert get_attention(model) == "sdpa"


def test_varlen_attention_replaces_only_the_attention_that_it_computes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", reference_attention)
    eager, sdpa = model_for(), model_for()
    eager.set_attn_implementation("eager")

    assert not pack_by_varlen(eager)
    assert pack_by_varlen(sdpa)
    assert (get_attention(eager), get_attention(sdpa)) == ("eager", VARLEN)


def test_the_head_of_a_model_with_varlen_attention_is_tested_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows of that test have no bounds."""
    monkeypatch.setattr(attention, "varlen_attn", reference_attention)
    model = model_for()
    assert pack_by_varlen(model)

    assert probe_head(model, ENCODED) is not None
    assert get_attention(model) == VARLEN


def test_padded_rows_without_a_mask_are_computed_as_alone() -> None:
    model = model_for()
    model.eval()  # type: ignore[no-untyped-call]
    rows = ENCODED[:3]

    together = model(**inputs(model_inputs(padded(rows)))).logits

    for row, logits in zip(rows, together, strict=True):
        alone = model(**inputs(pack([row]))).logits[0]
        torch.testing.assert_close(logits[: row.num_tokens], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["LoRA", "Full"])
def test_two_processes_train_as_one_and_go_on_exactly(tmp_path: Path, method: str) -> None:
    settings: dict[str, Any] = {"max_batch_tokens": 24, "save_every_steps": 2}
    with pods(tmp_path, dropout=0, method=method, accumulation=2, settings=settings) as two:
        one = elsewhere(two.bench, "one")
        expected = one.train(Pods(one, dropout=0, method=method, accumulation=2, settings=settings).alone())
        first = [two.start(rank) for rank in range(2)]
        first[0].read_until("saved the state after step 2")
        first[1].kill()
        assert first[0].finish().code == ExitCode.PEER_LOST
        leader, other = two.run()

        assert (leader.code, other.code) == (ExitCode.OK, ExitCode.OK), other.logs
        assert (two.result.steps, two.result.tokens) == (expected.steps, expected.tokens)
        assert two.result.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
        for mine, theirs in zip(two.result.checkpoints, expected.checkpoints, strict=True):
            assert mine.validation_loss == pytest.approx(theirs.validation_loss, rel=1e-5)
            together, alone = weights(two.bench.checkpoint(mine)), weights(one.checkpoint(theirs))
            torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
