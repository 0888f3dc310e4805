# SPDX-License-Identifier: Apache-2.0
"""Sampling of the next token from the logits."""

import torch


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
