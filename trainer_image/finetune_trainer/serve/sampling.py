"""How the next token is chosen from the logits."""

import torch


class Sampler:
    """Greedy at temperature 0, otherwise nucleus sampling with a random generator of its own.

    Its own generator makes a seeded request repeatable, whatever else is in the batch.
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
        """The id of the next token; `logits` is one row of the vocabulary, float32 on the CPU.

        Raises ValueError when the model overflowed: its logits are no numbers.
        """
        if not torch.isfinite(logits.max()):
            raise ValueError("the logits are not finite")
        if self._temperature == 0:
            return int(logits.argmax())
        # Less the maximum, so that a tiny temperature gives -inf for the others and never inf or nan.
        probabilities = torch.softmax((logits - logits.max()) / self._temperature, dim=-1)
        if self._top_p == 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, ids = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        nucleus = ordered.masked_fill(before >= self._top_p, 0)
        return int(ids[torch.multinomial(nucleus, 1, generator=self._generator)])
