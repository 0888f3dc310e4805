"""The output head, computed for a few positions at a time.

With a large vocabulary the logits are the largest tensor of a step: 300 tokens and a vocabulary of 262,144
take 300 MiB in float32, and the usual backward pass keeps several such tensors. Here the logits of a few
positions are computed, reduced to loss and gradient, and freed, as in "Liger Kernel: Efficient Triton Kernels
for LLM Training" (P.-L. Hsu et al., 2024, section 3.2, FusedLinearCrossEntropy).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import linear
from typing_extensions import override

MAX_LOGITS: Final = 1 << 24
"""Logits computed at once: 64 MiB in float32."""
PROBE_LOGIT: Final = 1000.0
"""Far beyond any real logit, so that a cap on the logits has an effect."""


class ChunkedHead:
    """Computes the loss of a linear output head without holding all of its logits.

    Valid only for models whose logits are the output of the head, or a multiple of it.
    """

    def __init__(self, head: nn.Linear) -> None:
        self._head = head
        self._positions = max(1, MAX_LOGITS // head.out_features)
        self._dtype = head.weight.dtype

    def loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Compute the summed negative log-likelihood in nats, in float32.

        The head multiplies in the dtype of the model's last pass: that of autocast if it was on, although
        `hidden` may have been widened since.

        Args:
            hidden: input of the head, of shape (positions, hidden size).
            targets: token ids to predict, of shape (positions,).
        """
        weight: Tensor = self._head.weight
        bias: Tensor | None = self._head.bias
        if not torch.is_grad_enabled():
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        loss_sum: Tensor = _HeadLoss.apply(hidden, weight, bias, targets, self._positions, self._dtype)
        return loss_sum

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """In the block, the model returns the input of the head instead of logits, or a multiple of it."""
        with _replaced(self._head, self._pass_through):
            yield

    def _pass_through(self, hidden: Tensor) -> Tensor:
        # accelerate converts outputs to float32, and the loss is computed outside of its autocast.
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        return hidden


@torch.inference_mode()
def chunked_head(model: Any, batch: Mapping[str, Tensor]) -> ChunkedHead | None:
    """Return the head of a causal language model, after a test on the inputs of `batch`.

    None if the head is not a linear layer, or if the model does more to its logits than multiply them, for
    example cap them. Leaves the model in evaluation mode.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    probe = torch.linspace(
        -PROBE_LOGIT, PROBE_LOGIT, head.out_features, dtype=head.weight.dtype, device=head.weight.device
    )
    model.eval()
    with _replaced(head, lambda hidden: probe.expand(*hidden.shape[:-1], -1)):
        logits = model(**batch, use_cache=False).logits.float()
    scale = logits[..., -1:] / PROBE_LOGIT
    is_multiple = torch.allclose(logits, probe.float() * scale, rtol=0.01, atol=0.01 * PROBE_LOGIT)
    bias: Tensor | None = head.bias
    if not is_multiple or (bias is not None and not torch.allclose(scale, torch.ones_like(scale))):
        return None
    return ChunkedHead(head)


@contextmanager
def _replaced(head: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del head.forward


class _HeadLoss(Function):
    """Loss and gradients in one pass over the positions; the backward pass only scales the gradients."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        positions: int,
        dtype: torch.dtype,
    ) -> Tensor:
        needs_grad = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        grad_hidden = torch.zeros_like(hidden) if needs_grad[0] else None
        grad_weight = torch.zeros_like(weight) if needs_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_grad[2] else None
        loss_sum = torch.zeros((), device=hidden.device)
        weight_cast, bias_cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        for begin in range(0, len(targets), positions):
            chunk = slice(begin, begin + positions)
            inputs, tokens = hidden[chunk].to(dtype), targets[chunk, None]
            logits = linear(inputs, weight_cast, bias_cast)
            probabilities = logits.float()
            normalizer = probabilities.logsumexp(-1, keepdim=True)
            loss_sum += (normalizer - probabilities.gather(-1, tokens)).sum()
            if not any(needs_grad):
                continue
            # Gradient of the loss with respect to the logits: probabilities, minus 1 for the target.
            probabilities = probabilities.sub_(normalizer).exp_()
            probabilities.scatter_add_(-1, tokens, -torch.ones_like(tokens, dtype=torch.float32))
            gradient = probabilities.to(logits.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = gradient @ weight_cast
            if grad_weight is not None:
                grad_weight += gradient.T @ inputs
            if grad_bias is not None:
                grad_bias += probabilities.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return loss_sum

    @staticmethod
    @override
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else gradient * scale.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return (*scaled, None, None, None)
