# SPDX-License-Identifier: Apache-2.0
"""The model that is trained, and the model that training starts from.

That reference model is the base model with its adapter disabled or, if the run continues from a Checkpoint, a
frozen copy of its adapter. It does not change in training and is not part of a resume state, so an
interrupted run resumes exactly. There is no second copy of the base model.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from finetune_trainer.model.completion_loss import ChunkedHead, segment_loss_sums
from finetune_trainer.tokens.encoding import IGNORE_INDEX

REFERENCE: Final = "reference"
"""Name of the copy of the adapter that training starts from."""
SEQUENCES: Final = ("input_ids", "attention_mask", "labels")
"""Inputs of shape (sequences, tokens)."""


@dataclass(frozen=True)
class ReferencedModel:
    """Computes log-likelihoods of labelled tokens, in nats and in float32."""

    adapted: PeftModel
    head: ChunkedHead | None
    wrapped: nn.Module
    """The adapted model, or the module that also exchanges its gradients with other processes."""

    @classmethod
    def of(cls, model: PeftModel, head: ChunkedHead | None, *, continues: bool) -> "ReferencedModel":
        """Prepare a model; `continues` says whether another run trained its adapter."""
        if continues:
            _keep_reference(model)
        _disable_dropout(model)
        return cls(model, head, model)

    def wrapped_by(self, module: nn.Module) -> "ReferencedModel":
        """The same model, computed through `module`."""
        return replace(self, wrapped=module)

    def on_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch on the device of the model."""
        return {name: value.to(self.adapted.device) for name, value in batch.items()}

    def segment_sums(self, batch: Mapping[str, Tensor], segments: Tensor) -> Tensor:
        """Log-likelihoods of consecutive runs of labelled tokens, of shape (segments,)."""
        return -segment_loss_sums(self.wrapped, sequences(batch), segments, self.head)

    def log_likelihoods(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihood of the labelled tokens of each sequence, of shape (sequences,)."""
        return self.segment_sums(batch, label_counts(batch))

    def log_ratios(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Log-likelihood of each sequence minus that under the reference model, of shape (sequences,)."""
        with torch.no_grad(), self._as_reference():
            reference = self.wrapped_by(self.adapted).log_likelihoods(batch)
        return self.log_likelihoods(batch) - reference

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if REFERENCE not in self.adapted.peft_config:
            with self.adapted.disable_adapter():
                yield
            return
        trained = self.adapted.active_adapter
        self.adapted.set_adapter(REFERENCE, inference_mode=True)
        try:
            yield
        finally:
            self.adapted.set_adapter(trained)


def sequences(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sequences of a batch, without the figures of its rows."""
    return {name: batch[name] for name in SEQUENCES}


def halves(batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first and the second sequence of each row."""
    parts = {name: batch[name].chunk(2) for name in SEQUENCES}
    first, second = ({name: part[at] for name, part in parts.items()} for at in (0, 1))
    return first, second


def label_counts(batch: Mapping[str, Tensor]) -> Tensor:
    """Number of labelled tokens of each sequence that a model predicts, of shape (sequences,)."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)


def _disable_dropout(model: nn.Module) -> None:
    """Compare two models by their weights alone."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _keep_reference(model: PeftModel) -> None:
    """Copy the adapter of the model, under another name and frozen."""
    trained = model.active_adapter
    weights = get_peft_model_state_dict(model, adapter_name=trained)
    model.add_adapter(REFERENCE, model.peft_config[trained])
    set_peft_model_state_dict(model, weights, adapter_name=REFERENCE)
    model.set_adapter(trained)
