# SPDX-License-Identifier: Apache-2.0
"""The probe: what trained weights predict after a few fixed prompts, recorded when they are published.

Whoever loads the weights later computes the same predictions and compares them with the record. The record is
a file that is derived from the checkpoint, so it goes with it.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
import transformers
from jinja2 import TemplateError
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.contract.serving import EngineName
from finetune_trainer.model.attention import disable_varlen
from finetune_trainer.model.device import mixed_precision
from finetune_trainer.model.loading import context_length
from finetune_trainer.model.probe_record import ProbeRecord, TopTokens
from finetune_trainer.tokens.batching import Padding, model_inputs
from finetune_trainer.tokens.chat_template import NONE, TemplateArguments, render
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow

PROMPTS: Final = (
    "What is 17 + 25?",
    "Is this review positive or negative? It broke after one day.",
    'Return the city as JSON: "I live in Porto."',
    "My order has not arrived. What should I do?",
)
"""Short requests of different kinds: arithmetic, a label, extraction, dialogue. Each makes a save slower."""


def probe_prompts(
    tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments = NONE
) -> tuple[tuple[int, ...], ...]:
    """The token ids of `PROMPTS`, each as serving sends it; empty if the chat template rejects them."""
    try:
        texts = [
            render(
                tokenizer,
                ({"role": "user", "content": prompt},),
                add_generation_prompt=True,
                arguments=arguments,
            )
            for prompt in PROMPTS
        ]
    except (TemplateError, TypeError, ValueError):
        return ()
    return tuple(tuple(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])


TOP_TOKENS: Final = 5
"""Tokens that the record has for each prompt."""
DECIMALS: Final = 6
ENGINE: Final[EngineName] = "Transformers"

PromptIds = Sequence[Sequence[int]]


def compute_probe(
    model: PreTrainedModel | PeftModel,
    prompts: PromptIds,
    pad_token_id: int,
    *,
    stored_dtype: torch.dtype | None = None,
    quantized: bool = False,
) -> ProbeRecord | None:
    """The record of a model; None if its predictions are not finite.

    `stored_dtype` is the dtype of the published weights, if it is not that of the model. Collective if
    the weights are sharded. Draws no random numbers.
    """
    limit = context_length(model.config)
    within = [list(prompt)[:limit] for prompt in prompts]
    tuned = log_probabilities(model, within, pad_token_id)
    base = None
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base = log_probabilities(model, within, pad_token_id)
    if not all(bool(torch.isfinite(each).all()) for each in (tuned, base) if each is not None):
        return None
    return ProbeRecord(
        engine=ENGINE,
        engine_version=transformers.__version__,
        device=model.device.type,
        dtype=dtype_name(less_precise_dtype(forward_dtype(model), stored_dtype)),
        quantized=quantized,
        prompts=tuple(tuple(prompt) for prompt in within),
        tuned=_top(tuned),
        base=() if base is None else _top(base),
    )


def log_probabilities(model: PreTrainedModel | PeftModel, prompts: PromptIds, pad_token_id: int) -> Tensor:
    """Log-probabilities of the token after each prompt, of shape (prompts, vocabulary), float32, on the CPU.

    Collective if the weights are sharded. Draws no random numbers, and leaves the model in its mode.
    """
    batch = Padding(pad_token_id)(
        [EncodedRow(list(prompt), [IGNORE_INDEX] * len(prompt)) for prompt in prompts]
    )
    lengths = batch["attention_mask"].sum(dim=1, keepdim=True)
    is_last = torch.arange(batch["input_ids"].shape[1]) == lengths - 1
    inputs = {name: tensor.to(model.device) for name, tensor in model_inputs(batch).items()}
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: FSDP gathers sharded weights into tensors that training uses, too.
        with torch.no_grad(), mixed_precision(model.device), disable_varlen(model):
            logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=is_last).logits
    finally:
        model.train(was_training)
    return logits.reshape(len(prompts), -1).float().log_softmax(-1).cpu()


def largest_difference(recorded: Sequence[TopTokens], predicted: Tensor) -> float:
    """Largest difference of the log-probability of a recorded token, in nats.

    `predicted` has the shape (prompts, vocabulary). Infinite for a token beyond the vocabulary.
    """
    vocabulary = predicted.shape[-1]
    if any(token >= vocabulary for top in recorded for token in top.ids):
        return float("inf")
    return max(
        float((row[list(top.ids)] - torch.tensor(top.log_probabilities)).abs().max())
        for top, row in zip(recorded, predicted, strict=True)
    )


def forward_dtype(model: Any) -> torch.dtype:
    """The dtype in which a pass without gradients multiplies matrices."""
    own: torch.dtype = model.dtype
    return torch.bfloat16 if model.device.type == "cuda" else own


def less_precise_dtype(one: torch.dtype, other: torch.dtype | None) -> torch.dtype:
    """The less precise of two floating-point dtypes."""
    return one if other is None or torch.finfo(one).eps >= torch.finfo(other).eps else other


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its package, such as float32."""
    return str(dtype).removeprefix("torch.")


def _top(predicted: Tensor) -> tuple[TopTokens, ...]:
    top = predicted.topk(min(TOP_TOKENS, predicted.shape[-1]))
    return tuple(
        TopTokens(ids=tuple(ids), log_probabilities=tuple(round(value, DECIMALS) for value in values))
        for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    )
