# SPDX-License-Identifier: Apache-2.0
"""Steps that compare numbers before anything is timed: packed rows, losses, 4 bits, and attention."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tests.gpu.errors import GPUCheckFailed, StepNotPossible
from tests.gpu.scene import GPUFigures, Scene

if TYPE_CHECKING:
    from torch import Tensor

    from finetune_trainer.tokens.encoding import EncodedRow

LENGTHS: Final = (300, 200, 37, 512)
"""Tokens of the rows that are compared. Kernels differ for short rows."""
MAX_GRADIENT_ERROR: Final = 0.02
"""Limit for the norm of the difference of gradients, relative to that of the gradients, of one layer in
bfloat16."""
MAX_NOISE_RATIO: Final = 1.5
"""Limit for the error of the gradients of packed rows, relative to that of rows alone in the same precision.
Both are compared with float32, so the limit holds for each depth of a model."""
MAX_LOSS_ERROR: Final = 0.002
"""Limit for the difference of a loss, relative to the loss."""
MAX_QUANTIZED_ERROR: Final = 0.02
"""Limit for a product in 4 bits compared with that of the dequantized weights, relative to it."""
MAX_QUANTIZATION: Final = 0.2
"""Limit for the effect of rounding weights to 4 bits. Of normally distributed weights it is about 0.1."""
HEADS: Final = (32, 8, 128)
"""Heads, key heads and head size of 8B."""
PASSES: Final = 20
PASS_TOKENS: Final = 8192
SHORTEST_ROW: Final = 64
LONGEST_ROW: Final = 2048


def numbers(scene: Scene) -> GPUFigures:
    """Compare what the trainer computes on the device with plain computations of the same.

    - packed: loss and gradients of packed rows with those of each row alone;
    - head: loss and gradients of the head's kernel with PyTorch's cross entropy in float32;
    - 4 bits: products of quantized layers with those of their dequantized weights.
    """
    figures = {**_packed(scene), **_head(scene), **_quantized(scene)}
    limits = {
        "packed, loss": MAX_LOSS_ERROR,
        "packed, gradients": MAX_LOSS_ERROR + MAX_NOISE_RATIO * figures["rows alone, gradients"],
        "head, loss": MAX_LOSS_ERROR,
        "head, gradients": MAX_GRADIENT_ERROR,
        "4 bits, products": MAX_QUANTIZED_ERROR,
        "4 bits, rounding of weights": MAX_QUANTIZATION,
    }
    shown: GPUFigures = {name: round(value, 6) for name, value in figures.items()}
    if wrong := [f"{name}: {figures[name]:.3g}, limit {limit:.3g}" for name, limit in limits.items()
                 if not figures[name] <= limit]:  # fmt: skip
        raise GPUCheckFailed(f"relative errors are too large: {'; '.join(wrong)}", shown)
    return shown


def _packed(scene: Scene) -> dict[str, float]:
    """Relative errors of packed rows, with the attention that training chooses on the device."""
    import torch

    from finetune_trainer.model.attention import REPLACED, get_attention, set_attention
    from finetune_trainer.model.device import mixed_precision
    from finetune_trainer.model.loading import load_base
    from finetune_trainer.tokens.batching import pack
    from finetune_trainer.train.collation import choose_budget

    device = torch.device(scene.device)
    model = load_base(scene.model(scene.size("0.7B")), torch.float32, device)
    trained: Any = model
    rows = _rows(model.config.vocab_size)
    collate = choose_budget(trained, PASS_TOKENS, 0, device).collate
    if scene.device == "cuda" and get_attention(model) == REPLACED:
        raise GPUCheckFailed("varlen attention cannot be used on this device; the step's output says why")
    model.train()
    packed = _gradients(model, [rows], collate, mixed_precision(device))
    set_attention(model, REPLACED)
    one_by_one = [[row] for row in rows]
    alone = _gradients(model, one_by_one, pack, mixed_precision(device))
    exact = _gradients(model, one_by_one, pack, nullcontext())
    return {
        "packed, loss": abs(packed[0] - exact[0]) / abs(exact[0]),
        "packed, gradients": _relative(packed[1], exact[1]),
        "rows alone, gradients": _relative(alone[1], exact[1]),
    }


def _gradients(
    model: Any,
    batches: Sequence[Sequence["EncodedRow"]],
    collate: Callable[..., Any],
    precision: AbstractContextManager[Any],
) -> tuple[float, list["Tensor"]]:
    """Summed loss of the batches, and its gradients."""
    import torch

    from finetune_trainer.model.completion_loss import completion_loss

    model.zero_grad(set_to_none=True)
    loss_sum = 0.0
    for rows in batches:
        batch = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in collate(rows).items()
        }
        with precision:
            loss, _ = completion_loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        loss_sum += loss.item()
    return loss_sum, [each.grad.clone() for each in model.parameters() if each.grad is not None]


def _head(scene: Scene) -> dict[str, float]:
    """Relative errors of the head that training uses on the device, in bfloat16."""
    import torch

    from finetune_trainer.model.completion_loss import chunked_losses, tiled_losses

    device = torch.device(scene.device)
    hidden_size, vocabulary = (64, 512) if scene.rehearsal else (4096, 128_256)
    generator = torch.Generator(device).manual_seed(0)
    inputs = torch.randn(sum(LENGTHS), hidden_size, generator=generator, device=device)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, device=device) / hidden_size**0.5
    targets = torch.randint(vocabulary, (sum(LENGTHS),), generator=generator, device=device)
    hidden, weights = (each.to(torch.bfloat16).requires_grad_() for each in (inputs, weight))
    losses = tiled_losses if scene.device == "cuda" else chunked_losses
    loss = losses(hidden, weights, None, targets).sum()
    found = torch.autograd.grad(loss, (hidden, weights))
    plain = [each.detach().float().requires_grad_() for each in (hidden, weights)]
    expected = torch.nn.functional.cross_entropy(plain[0] @ plain[1].T, targets, reduction="sum")
    gradients = torch.autograd.grad(expected, plain)
    return {
        "head, loss": abs(loss.item() - expected.item()) / expected.item(),
        "head, gradients": _relative(found, gradients),
    }


def _quantized(scene: Scene) -> dict[str, float]:
    """Relative errors of the first layers in 4 bits: of the kernel, and of the rounding of the weights."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    from finetune_trainer.model.loading import load_base, load_quantized_base, quantized_layers

    device = torch.device(scene.device)
    folder = scene.model(scene.size("0.7B"))
    quantized = quantized_layers(load_quantized_base(folder, device))
    originals = dict(load_base(folder, torch.bfloat16, device).named_modules())
    of_kernel = of_rounding = 0.0
    for name in list(quantized)[:7]:
        layer: Any = quantized[name]
        weight = dequantize_module_weight(layer)
        inputs = torch.randn(
            (sum(LENGTHS), layer.in_features),
            generator=torch.Generator(device).manual_seed(0),
            device=device,
        ).to(layer.compute_dtype)
        with torch.no_grad():
            product, expected = layer(inputs).float(), inputs.float() @ weight.float().T
        of_kernel = max(of_kernel, _relative([product], [expected]))
        of_rounding = max(of_rounding, _relative([weight], [originals[name].weight]))
    return {"4 bits, products": of_kernel, "4 bits, rounding of weights": of_rounding}


def _rows(vocabulary: int) -> list["EncodedRow"]:
    from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow

    chance = random.Random(0)  # noqa: S311 - tokens, not secrets
    rows = []
    for length in LENGTHS:
        tokens = [chance.randrange(vocabulary) for _ in range(length)]
        prompt = length // 3
        rows.append(EncodedRow(tokens, [IGNORE_INDEX] * prompt + tokens[prompt:]))
    return rows


def _relative(found: Sequence["Tensor"], expected: Sequence["Tensor"]) -> float:
    """Norm of the difference of all tensors together, relative to that of the expected ones."""
    import torch

    with torch.no_grad():
        pairs = [(one.float(), other.float()) for one, other in zip(found, expected, strict=True)]
        apart = torch.stack([(one - other).norm() for one, other in pairs]).norm()
        return float(apart / torch.stack([other.norm() for _, other in pairs]).norm())


def attention(scene: Scene) -> GPUFigures:
    """Speed of varlen attention, forward and backward, on packed rows of random lengths.

    Each pass has another number of rows and another longest row, as in training: it costs time if a kernel
    is prepared for each pair of them. cuDNN is compared where PyTorch offers the choice.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel, varlen

    from finetune_trainer.model.attention import AttentionShape, check_gradients
    from tests.gpu.machine import torch_version

    if scene.device != "cuda":
        raise StepNotPossible("varlen attention runs on a GPU only")
    device = torch.device(scene.device)
    heads, key_heads, size = HEADS
    kernel: Callable[..., torch.Tensor] = varlen.varlen_attn  # type: ignore[assignment]
    check_gradients(AttentionShape(heads, key_heads, size, size, None, None), device)
    batches = _random_bounds()

    def seconds(backend: Callable[[], AbstractContextManager[Any]]) -> float:
        states = [
            torch.randn(PASS_TOKENS, number, size, device=device, dtype=torch.bfloat16).requires_grad_()
            for number in (heads, key_heads, key_heads)
        ]
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for bounds in batches:
            cuts = torch.tensor(bounds, dtype=torch.int32, device=device)
            longest = max(end - start for start, end in pairwise(bounds))
            with backend():
                output = kernel(*states, cuts, cuts, longest, longest, window_size=(-1, 0), enable_gqa=True)
            output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        return time.perf_counter() - begin

    def flash() -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)

    seconds(flash)
    figures: GPUFigures = {"FlashAttention, ms per pass": round(1000 * seconds(flash) / PASSES, 2)}
    if torch_version(torch.__version__) < (2, 15):
        return {**figures, "cuDNN": f"PyTorch {torch.__version__} does not offer it for varlen attention"}

    def cudnn() -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.CUDNN_ATTENTION)

    try:
        seconds(cudnn)
        return {**figures, "cuDNN, ms per pass": round(1000 * seconds(cudnn) / PASSES, 2)}
    except RuntimeError as error:
        return {**figures, "cuDNN": str(error).partition("\n")[0]}


def _random_bounds() -> list[list[int]]:
    """Bounds of the rows of each pass, with PASS_TOKENS in all."""
    chance = random.Random(0)  # noqa: S311 - lengths, not secrets
    batches = []
    for _ in range(PASSES):
        bounds = [0]
        while bounds[-1] < PASS_TOKENS:
            bounds.append(min(PASS_TOKENS, bounds[-1] + chance.randint(SHORTEST_ROW, LONGEST_ROW)))
        batches.append(bounds)
    return batches
