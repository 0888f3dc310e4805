"""The output head, over a few positions at a time.

Logits of a large vocabulary are the largest tensor of a step: 300 tokens of a vocabulary of 262,144 take
300 MiB in float32, and the usual way from them to the gradient keeps several such tensors. Here they are made
for a few positions, turned into loss and gradient, and forgotten, as in "Liger Kernel: Efficient Triton
Kernels for LLM Training" (P.-L. Hsu et al., 2024, section 3.2, FusedLinearCrossEntropy).
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
"""64 MiB in float32."""
PROBE: Final = 1000.0
"""Far beyond any logit, so that a cap shows."""


class ChunkedHead:
    """The loss of a linear output head without all of its logits.

    Only for models that give what comes out of the head as their logits, or a multiple of it.
    """

    def __init__(self, head: nn.Linear) -> None:
        self._head = head
        self._positions = max(1, MAX_LOGITS // head.out_features)
        self._dtype = head.weight.dtype

    def loss_sum(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed negative log-likelihood in float32.

        The head multiplies in the dtype in which it would have multiplied in the model's last pass: that of
        autocast, where that is on, which `hidden` may have been widened from since.

        Args:
            hidden: what the head reads, of shape (positions, hidden size).
            targets: the token ids that are to be predicted, of shape (positions,).
        """
        weight: Tensor = self._head.weight
        bias: Tensor | None = self._head.bias
        if not torch.is_grad_enabled():
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        nats: Tensor = _HeadLoss.apply(hidden, weight, bias, targets, self._positions, self._dtype)
        return nats

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Meanwhile the model gives in place of its logits what the head would read, or a multiple of it."""
        with _replaced(self._head, self._passed_on):
            yield

    def _passed_on(self, hidden: Tensor) -> Tensor:
        # accelerate gives the model's outputs as float32, and the loss is computed outside of its autocast.
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        self._dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        return hidden


@torch.inference_mode()
def chunked_head(model: Any, batch: Mapping[str, Tensor]) -> ChunkedHead | None:
    """The head of a causal language model, tried out on the inputs of `batch`.

    None where it is no linear layer, or the model does more to its logits afterwards than to multiply them,
    such as to cap them. Leaves the model in evaluation mode.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    probe = torch.linspace(
        -PROBE, PROBE, head.out_features, dtype=head.weight.dtype, device=head.weight.device
    )
    model.eval()
    with _replaced(head, lambda hidden: probe.expand(*hidden.shape[:-1], -1)):
        given = model(**batch, use_cache=False).logits.float()
    scale = given[..., -1:] / PROBE
    linear_in_logits = torch.allclose(given, probe.float() * scale, rtol=0.01, atol=0.01 * PROBE)
    bias: Tensor | None = head.bias
    if not linear_in_logits or (bias is not None and not torch.allclose(scale, torch.ones_like(scale))):
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
    """Loss and gradients in one pass over the positions; the backward pass only scales them."""

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
        learned = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        grad_hidden = torch.zeros_like(hidden) if learned[0] else None
        grad_weight = torch.zeros_like(weight) if learned[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and learned[2] else None
        nats = torch.zeros((), device=hidden.device)
        multiplied, added = weight.to(dtype), None if bias is None else bias.to(dtype)
        for begin in range(0, len(targets), positions):
            part = slice(begin, begin + positions)
            inputs, tokens = hidden[part].to(dtype), targets[part, None]
            logits = linear(inputs, multiplied, added)
            probabilities = logits.float()
            normalizer = probabilities.logsumexp(-1, keepdim=True)
            nats += (normalizer - probabilities.gather(-1, tokens)).sum()
            if not any(learned):
                continue
            # The derivative of the loss by the logits: probabilities, less 1 for the token that is right.
            probabilities = probabilities.sub_(normalizer).exp_()
            probabilities.scatter_add_(-1, tokens, -torch.ones_like(tokens, dtype=torch.float32))
            gradient = probabilities.to(logits.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = gradient @ multiplied
            if grad_weight is not None:
                grad_weight += gradient.T @ inputs
            if grad_bias is not None:
                grad_bias += probabilities.sum(0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return nats

    @staticmethod
    @override
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if gradient is None else gradient * scale.to(gradient.dtype)
            for gradient in ctx.saved_tensors
        )
        return (*scaled, None, None, None)
