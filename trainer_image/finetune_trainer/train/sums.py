"""Figures of the optimizer step in progress."""

import torch
from torch import Tensor


class StepSums:
    """Sums over the batches of the optimizer step in progress."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def add(self, nats: Tensor, labels: Tensor, tokens: Tensor) -> None:
        """Count one batch; stays on the device, so that it waits for nothing."""
        self._sums += torch.stack(
            [value.detach().double().to(self._sums.device) for value in (nats, labels, tokens)]
        )

    @property
    def nats(self) -> float:
        """Summed loss."""
        return float(self._sums[0])

    def take(self) -> tuple[float, int, int]:
        """Summed loss, what it is a mean over, and tokens read without padding; begins the next step.

        The mean is over labelled tokens, or over rows where a method's loss is one a row.
        """
        nats, labels, tokens = self._sums.tolist()
        self._sums.zero_()
        return nats, int(labels), int(tokens)
