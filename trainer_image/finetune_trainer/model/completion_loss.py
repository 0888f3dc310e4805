# SPDX-License-Identifier: Apache-2.0
"""The loss on completion tokens only, with the output head computed for a few positions at a time.

With a large vocabulary the logits are the largest tensor of a step: 300 tokens and a vocabulary of 262,144
take 300 MiB in float32, and the usual backward pass keeps several such tensors. Here the logits of a few
positions are computed, reduced to loss and gradient, and freed, as in "Liger Kernel: Efficient Triton Kernels
for LLM Training" (P.-L. Hsu et al., 2024, section 3.2, FusedLinearCrossEntropy).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import cross_entropy, linear
from typing_extensions import override

from finetune_trainer.model.adapted_layers import unwrap_base_model
from finetune_trainer.tokens.batching import ROW_LABELS, model_inputs
from finetune_trainer.tokens.encoding import IGNORE_INDEX

MAX_LOGITS: Final = 1 << 24
"""Logits computed at once on a CPU: 64 MiB in float32."""
TILE_TOKENS: Final = 8192
"""Vocabulary of a tile of logits on a GPU."""
PROBE_LOGIT: Final = 1000.0
"""Far beyond any real logit, so that a cap on the logits has an effect."""


Losses = Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
"""Negative log-likelihoods in nats, in float32, of hidden states (positions, hidden size), weight, bias and
targets (positions,). The head multiplies in the dtype of autocast if it is on, else in that of the hidden
states. The gradients of weight and bias are correct only if all losses have the same upstream gradient."""


class ChunkedHead:
    """Computes the loss of a linear output head without holding all of its logits.

    Valid only for models whose logits are the output of the head, or a multiple of it. The loss is computed
    where the model computes its head: only there are sharded weights whole, and only there do processes learn
    which gradients to expect.
    """

    def __init__(self, head: nn.Linear, scale: float = 1.0) -> None:
        """`scale` is the factor by which the model multiplies the output of the head."""
        self._head = head
        self._scale = scale
        on_gpu = head.weight.device.type == "cuda"
        self._losses: Losses = tiled_losses if on_gpu else chunked_losses

    @contextmanager
    def computing_loss(
        self, targets: Tensor, row_tokens: Sequence[int] | None = None
    ) -> Iterator[Callable[[Tensor], Tensor]]:
        """In the block, the model returns the loss of `targets` in place of its logits.

        Yields a function that takes what the model returns, and returns the summed negative log-likelihood in
        nats, in float32. `targets` has the token ids to predict, of shape (positions,). With `row_tokens`,
        the number of targets of each row, it returns one sum per row.
        """

        def forward(hidden: Tensor) -> Tensor:
            weight: Tensor = self._head.weight
            bias: Tensor | None = self._head.bias
            if not torch.is_grad_enabled():
                weight, bias = weight.detach(), None if bias is None else bias.detach()
            scaled = hidden if self._scale == 1 else hidden * self._scale
            # A tied head can be on another device than the last layer.
            inputs = scaled.flatten(0, -2).to(weight.device)
            labels = targets.to(weight.device)
            if row_tokens is None:
                loss_sum = self._losses(inputs, weight, bias, labels).sum()
                return loss_sum.reshape(1, 1)  # logits have two dimensions too
            if weight.requires_grad or (bias is not None and bias.requires_grad):
                rows = zip(*(torch.split(each, list(row_tokens)) for each in (inputs, labels)), strict=True)
                parts = [self._losses(row, weight, bias, of_row) for row, of_row in rows]
            else:
                losses = self._losses(inputs, weight, bias, labels)
                parts = list(torch.split(losses, list(row_tokens)))
            return torch.stack([part.sum() for part in parts]).reshape(1, -1)

        def unscaled(returned: Tensor) -> Tensor:
            loss_sum = returned.reshape(() if row_tokens is None else -1)
            return loss_sum if self._scale == 1 else loss_sum / self._scale

        with _replace_forward(self._head, forward):
            yield unscaled


def chunked_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """`Losses` that computes the gradients with the loss, a few positions at a time: fastest on a CPU."""
    positions = max(1, MAX_LOGITS // len(weight))
    losses: Tensor = _HeadLoss.apply(hidden, weight, bias, targets, positions, _dtype(hidden))
    return losses


def tiled_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """`Losses` by TRL's kernels, which read each tile of logits once: for GPUs."""
    # Imported late: only a GPU needs it.
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    temperature, soft_cap, logit_scale, other_outputs = 1.0, None, 1.0, ()
    # Triton starts its kernels on the current device.
    with torch.cuda.device_of(hidden):  # type: ignore[no-untyped-call]
        log_probabilities, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, temperature, TILE_TOKENS, soft_cap, logit_scale, other_outputs
        )
    losses: Tensor = -log_probabilities
    return losses


def _dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


@torch.no_grad()
def chunked_head(model: Any, batch: Mapping[str, Tensor]) -> ChunkedHead | None:
    """Return the head of a causal language model, after a test on the inputs of `batch`.

    None if the head is not a linear layer, or if the model does more to its logits than multiply them, for
    example cap them. Leaves the model in evaluation mode. Of a model on the meta device, only what follows
    its decoder is computed.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    device = torch.device("cpu") if head.weight.is_meta else head.weight.device
    # In float32 also for other models, so that the factor is exact.
    probe = torch.linspace(-PROBE_LOGIT, PROBE_LOGIT, head.out_features, device=device)
    model.eval()
    with ExitStack() as replaced:
        replaced.enter_context(_replace_forward(head, lambda hidden: probe.expand(*hidden.shape[:-1], -1)))
        if head.weight.is_meta:
            hidden = torch.zeros(*batch["input_ids"].shape, head.in_features)
            replaced.enter_context(
                _replace_forward(unwrap_base_model(model).base_model, lambda *_, **__: DecoderOutput(hidden))
            )
        logits = model(**batch, use_cache=False).logits.float()
    probe = probe.to(logits.device)
    scale = logits[..., -1:] / PROBE_LOGIT
    is_multiple = torch.allclose(logits, probe * scale, rtol=0.01, atol=0.01 * PROBE_LOGIT)
    factor = float(scale.flatten()[0])
    bias: Tensor | None = head.bias
    if not is_multiple or factor == 0 or not torch.allclose(scale, torch.full_like(scale, factor), rtol=1e-3):
        return None
    if bias is not None and not math.isclose(factor, 1, rel_tol=1e-3):
        return None
    return ChunkedHead(head, 1.0 if math.isclose(factor, 1, rel_tol=1e-6) else factor)


class DecoderOutput:
    """Hidden states as the output of any decoder, which have different further fields: all of them None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    hooked = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        # accelerate's hook, where several devices compute the model.
        if hooked is not None:
            module.forward = hooked


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
        # Chunks are summed in float32; sharded weights are bfloat16 here.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and needs_grad[2] else None
        losses = torch.empty(len(targets), device=hidden.device)
        weight_cast, bias_cast = weight.to(dtype), None if bias is None else bias.to(dtype)
        for begin in range(0, len(targets), positions):
            chunk = slice(begin, begin + positions)
            inputs, tokens = hidden[chunk].to(dtype), targets[chunk, None]
            logits = linear(inputs, weight_cast, bias_cast)
            probabilities = logits.float()
            largest, of_target = probabilities.amax(-1, keepdim=True), probabilities.gather(-1, tokens)
            # In place and once, because logits are the largest tensor. This is logsumexp.
            probabilities = probabilities.sub_(largest).exp_()
            total = probabilities.sum(-1, keepdim=True)
            losses[chunk] = (total.log() + largest - of_target).squeeze(-1)
            if not any(needs_grad):
                continue
            # Gradient of the loss with respect to the logits: probabilities, minus 1 for the target.
            probabilities = probabilities.div_(total)
            probabilities.scatter_add_(-1, tokens, -torch.ones_like(tokens, dtype=torch.float32))
            gradient = probabilities.to(logits.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = gradient @ weight_cast
            if grad_weight is not None:
                grad_weight += gradient.T @ inputs
            if grad_bias is not None:
                grad_bias += probabilities.sum(0)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return losses

    @staticmethod
    @override
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        of_hidden, *of_head = ctx.saved_tensors
        if of_hidden is not None:
            of_hidden = of_hidden * scale[:, None].to(of_hidden.dtype)
        of_head = [
            None if gradient is None else gradient * scale[:1].sum().to(gradient.dtype)
            for gradient in of_head
        ]
        return (of_hidden, *of_head, None, None, None)


def completion_loss(
    model: torch.nn.Module, batch: Mapping[str, Tensor], head: ChunkedHead | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of the labelled tokens in nats, and their number.

    `batch` has `input_ids` and `labels` of shape (rows, tokens), and the model's other inputs. The output
    head, the most expensive layer of a small model, reads only the positions that predict a labelled token:
    with `head` a few at a time, without it all at once, as logits of shape (labelled tokens, vocabulary).
    The loss is computed in float32.
    """
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    predicting = targets != IGNORE_INDEX
    inputs = model_inputs(batch)
    if head is not None:
        with head.computing_loss(targets[predicting]) as loss_of:
            returned = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
        return loss_of(returned), predicting.sum()
    logits = model(**inputs, use_cache=False, logits_to_keep=predicting).logits
    return cross_entropy(logits.float(), targets[predicting], reduction="sum"), predicting.sum()


def row_loss_sums(
    model: torch.nn.Module, batch: Mapping[str, Tensor], head: ChunkedHead | None = None
) -> tuple[Tensor, Tensor]:
    """Return the summed negative log-likelihood of each padded row in nats, and its labelled tokens.

    Both have shape (rows,). `batch` and `head` are those of `completion_loss`.
    """
    tokens = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
    return segment_loss_sums(model, batch, tokens, head), tokens


def segment_loss_sums(
    model: torch.nn.Module, batch: Mapping[str, Tensor], segments: Tensor, head: ChunkedHead | None = None
) -> Tensor:
    """As `row_loss_sums`, for consecutive runs of labelled tokens, of shape (segments,).

    `segments` has the number of tokens of each.
    """
    targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
    predicting = targets != IGNORE_INDEX
    sizes: list[int] = segments.tolist()
    # On the CPU, because the last layer can be on another device than the batch.
    inputs = {**model_inputs(batch), "use_cache": False, "logits_to_keep": predicting.cpu()}
    if head is not None:
        with head.computing_loss(targets[predicting], sizes) as sums_of:
            returned = model(**inputs).logits
        return sums_of(returned)
    logits = model(**inputs).logits
    losses = cross_entropy(logits.float(), targets[predicting], reduction="none")
    return torch.stack([part.sum() for part in torch.split(losses, sizes)])


def total_completion_loss(
    model: torch.nn.Module, batches: Iterable[Mapping[str, Tensor]], head: ChunkedHead | None = None
) -> tuple[float, int]:
    """Summed loss of all labelled tokens of all batches in nats, without dropout, and their number.

    Draws no random numbers. Leaves the model in evaluation mode.
    """
    model.eval()
    loss_sum = 0.0
    tokens = 0
    # Not inference_mode: FSDP gathers sharded weights into tensors that training uses, too.
    with torch.no_grad():
        for batch in batches:
            batch_loss, batch_tokens = completion_loss(model, batch, head)
            loss_sum += float(batch_loss)
            tokens += int(batch_tokens)
    return loss_sum, tokens


def completion_losses_by_row(
    model: torch.nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    head: ChunkedHead | None,
    add: Callable[[Tensor, Tensor], None],
) -> tuple[float, int]:
    """As `total_completion_loss`, for batches with `ROW_LABELS`.

    Calls `add` for each batch with the summed loss of its rows in nats, and their labelled tokens.
    """
    model.eval()
    loss_sum = 0.0
    tokens = 0
    with torch.no_grad():
        for batch in batches:
            labels = batch[ROW_LABELS]
            losses = segment_loss_sums(model, batch, labels, head)
            add(losses, labels)
            loss_sum += float(losses.sum())
            tokens += int(labels.sum())
    return loss_sum, tokens
