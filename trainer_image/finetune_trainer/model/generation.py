# SPDX-License-Identifier: Apache-2.0
"""Generation of the next tokens of running requests: one forward pass computes one token for each of them.

Rows are left-padded, so that all of them end in the same column: column `width - 1` holds the newest token of
every row. Requests join and leave between passes. Padding is masked, and position ids count real tokens only,
so a row's logits do not depend on the other rows (up to rounding). Inputs are on the device of the embedding,
and the keys and values of each layer on the device of that layer.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Sampler:
    """Greedy at temperature 0, otherwise nucleus sampling.

    Each sampler has its own random generator, so that a seeded request is repeatable in any batch.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def choose(self, logits: torch.Tensor) -> int:
        """Return the id of the next token. `logits` has shape (vocabulary,), in float32 on the CPU.

        Raises ValueError if the model overflowed, so that its logits are not finite.
        """
        if not torch.isfinite(logits.max()):
            raise ValueError("the logits are not finite")
        if self._temperature == 0:
            return int(logits.argmax())
        # Subtract the maximum, so that a tiny temperature gives -inf for other tokens, never inf or nan.
        probabilities = torch.softmax((logits - logits.max()) / self._temperature, dim=-1)
        if self._top_p == 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, ids = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        nucleus = ordered.masked_fill(before >= self._top_p, 0)
        return int(ids[torch.multinomial(nucleus, 1, generator=self._generator)])


BASE_ADAPTER = "__base__"
"""PEFT's name for a row without adapter in a mixed batch."""


def can_leave_batch(config: PretrainedConfig) -> bool:
    """Whether rows can join and leave a batch: the only state of all layers are keys and values of tokens."""
    chunked = "chunked_attention" in (getattr(config.get_text_config(), "layer_types", None) or ())
    layers = {type(layer) for layer in DynamicCache(config=config).layers}
    return not chunked and layers <= {DynamicLayer, DynamicSlidingWindowLayer}


class GenerationBatch:
    """Rows generated together, in the order in which they joined."""

    def __init__(self, model: torch.nn.Module, *, mixed: bool) -> None:
        """`mixed`: the model is a PEFT model that takes one adapter name per row."""
        self._model = model
        self._mixed = mixed
        self._device = next(model.parameters()).device
        self._adapters: list[str] = []
        self._mask = torch.empty(0, 0, dtype=torch.long, device=self._device)
        self._cache = DynamicCache()

    def __len__(self) -> int:
        return len(self._adapters)

    def join(self, prompts: Sequence[Sequence[int]], adapters: Sequence[str]) -> torch.Tensor:
        """Append rows and prefill their prompts. Returns logits of shape (new rows, vocabulary)."""
        width = max(len(prompt) for prompt in prompts)
        padding = [width - len(prompt) for prompt in prompts]
        # Any id works as padding: the mask hides it.
        ids = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding], device=self._device)
        # Without a config, layers with a sliding window keep all their keys too. The mask applies the window,
        # so that rows of different lengths can share a batch.
        cache = DynamicCache()
        logits = self._forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache, adapters)
        if self._adapters:
            self._append(cache, mask)
        else:
            self._cache, self._mask = cache, mask
        self._adapters.extend(adapters)
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Run a pass over the newest token of each row. Returns logits of shape (rows, vocabulary)."""
        self._mask = F.pad(self._mask, (0, 1), value=1)
        positions = self._mask.sum(-1, keepdim=True) - 1
        ids = torch.tensor(tokens).unsqueeze(-1)
        return self._forward(ids, self._mask, positions, self._cache, self._adapters)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, and drop columns that then contain only padding."""
        if len(rows) == len(self._adapters):
            return
        if not rows:
            self.clear()
            return
        index = torch.tensor(rows)
        self._adapters = [self._adapters[row] for row in rows]
        mask = self._mask[index.to(self._device)]
        unused = mask.shape[1] - int(mask.sum(-1).max())
        self._mask = mask[:, unused:]
        self._cache = DynamicCache(
            [
                (_rows(keys, index, unused), _rows(values, index, unused))
                for keys, values in _states(self._cache)
            ]
        )

    def clear(self) -> None:
        """Drop all rows."""
        self._adapters = []
        self._mask = torch.empty(0, 0, dtype=torch.long, device=self._device)
        self._cache = DynamicCache()

    def _append(self, cache: DynamicCache, mask: torch.Tensor) -> None:
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_pad_columns(self._mask, width), _pad_columns(mask, width)])
        self._cache = DynamicCache(
            [
                (
                    torch.cat([_pad_states(old_keys, width), _pad_states(new_keys, width)]),
                    torch.cat([_pad_states(old_values, width), _pad_states(new_values, width)]),
                )
                for (old_keys, old_values), (new_keys, new_values) in zip(
                    _states(self._cache), _states(cache), strict=True
                )
            ]
        )

    @torch.inference_mode()
    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: DynamicCache,
        adapters: Sequence[str],
    ) -> torch.Tensor:
        mixed = {"adapter_names": list(adapters)} if self._mixed else {}
        output = self._model(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
            **mixed,
        )
        logits: torch.Tensor = output.logits
        return logits[:, -1].float().cpu()


def _pad_columns(mask: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(mask, (width - mask.shape[1], 0))


def _states(cache: DynamicCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return keys and values of each layer, of shape (rows, heads, columns, head size)."""
    return [(keys, values) for keys, values, _ in cache]


def _rows(states: torch.Tensor, index: torch.Tensor, unused: int) -> torch.Tensor:
    """Rows of one layer's states on its device, without the first `unused` columns."""
    return states[index.to(states.device), :, unused:]


def _pad_states(states: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(states, (0, 0, width - states.shape[2], 0))
