# SPDX-License-Identifier: Apache-2.0
"""What the reference model says about the rows: computed once before training, and kept with the tokens.

The reference model is the model that training starts from: the base model without a new adapter, or all
weights of the Checkpoint that the run continues. Its log-likelihoods do not change in training, so neither a
second model nor a second forward pass is needed in a step. A run that resumes reads them, and so does another
run with the same rows and the same start.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from finetune_trainer import canonical_json
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import TYPES
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.device import mixed_precision
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import DerivedRef
from finetune_trainer.tokens.encoding import EncodedRow
from finetune_trainer.train.model_setup import Trainable
from finetune_trainer.train.preference.preference_loss import ComparedRow, PreferenceLoss, ScoredModel

RULE: Final = 1
"""Raise it with every change of what the log-likelihoods are, or of their file."""
FILE: Final = "reference.safetensors"
TENSOR: Final = "log_likelihoods"

Sequences = Iterable[tuple[EncodedRow, EncodedRow]]
"""The two sequences of each row."""

logger = logging.getLogger(__name__)


class ReferenceLikelihoods(ABC):
    """Looks up what the reference model says about rows."""

    @abstractmethod
    def look_up(self, sequences: Sequences, compute: Callable[[], Tensor]) -> Tensor:
        """Return log-likelihoods in nats, of shape (rows, 2). Collective.

        Args:
            sequences: what they are computed of.
            compute: computes those of the rows of this process; the other rows are 0.
        """

    def end_batch(self) -> None:  # noqa: B027 # most have nothing to do
        """Called after each batch of `compute`."""


class ComputedLikelihoods(ReferenceLikelihoods):
    """Keeps nothing: for one process without a store."""

    @override
    def look_up(self, sequences: Sequences, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


@dataclass(frozen=True)
class KeptLikelihoods(ReferenceLikelihoods):
    """Keeps them in the folder of the dataset, named by the start of training and the sequences."""

    context: StageContext
    dataset: ArtifactRef
    start: str
    """What the log-likelihoods depend on in addition to the sequences."""
    feed: Callable[[], None]
    """Records a sign of life."""

    @classmethod
    def of(
        cls, config: TrainConfig, context: StageContext, model: Trainable, feed: Callable[[], None]
    ) -> "KeptLikelihoods":
        """Those of a run that starts with `model`."""
        start = {
            "rule": RULE,
            "model": config.base_model,
            "parent": config.parent.digest if config.parent else None,
            "quantized": TYPES[config.method.type].quantized_base,
            "dtype": str(model.dtype),
            "device": model.device.type,
        }
        dataset = ArtifactRef(kind="datasets", digest=config.dataset)
        return cls(context, dataset, canonical_json.text(start), feed)

    @override
    def look_up(self, sequences: Sequences, compute: Callable[[], Tensor]) -> Tensor:
        """Read them, or compute and publish them.

        Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, STORE_UNAVAILABLE), Preempted, PeerLost.
        """
        group, store = self.context.group, self.context.store
        name = f"reference-{self._digest(sequences)}"
        known = store.derived(self.dataset, name) if group.is_main_process else None
        if not group.broadcast(int(known is not None)):
            logger.info("computing the log-likelihoods of the rows under the reference model")
            own = compute()
            parts = group.gather(own.numpy().tobytes())
            if group.is_main_process:
                self._publish(_sum(parts, own.shape), name)
            group.broadcast(1)  # the others wait for the file
        found = store.derived(self.dataset, name) if known is None else known
        if found is None:
            raise StageFailure(
                FailureReason.ARTIFACT_NOT_FOUND,
                f"{name}, derived from {store.uri(self.dataset)}, was deleted while the run started; start"
                " the run again",
            )
        return load_file(store.artifact(found, verify=True) / FILE)[TENSOR]

    @override
    def end_batch(self) -> None:
        self.feed()

    def _digest(self, sequences: Sequences) -> str:
        digest = hashlib.sha256(self.start.encode())
        for row in (each for pair in sequences for each in pair):
            digest.update(np.array([len(row.input_ids), *row.input_ids, *row.labels], "<i4").tobytes())
        return digest.hexdigest()

    def _publish(self, values: Tensor, name: str) -> None:
        store = self.context.store
        with store.staging() as staging:
            save_file({TENSOR: values}, staging / FILE)
            store.name_derived(DerivedRef(self.dataset, store.publish(self.dataset, staging)), name)


def _sum(parts: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """Join the rows of all processes: each row is 0 in all of them but one."""
    arrays = [np.frombuffer(part, np.float32) for part in parts]
    return torch.from_numpy(np.sum(arrays, axis=0)).reshape(*shape)


@torch.no_grad()
def reference_log_likelihoods(
    model: ScoredModel,
    loss: PreferenceLoss[Any],
    batches: Iterable[tuple[Sequence[int], Sequence[ComparedRow]]],
    *,
    continues: bool,
    references: ReferenceLikelihoods,
    count: int,
) -> Tensor:
    """Compute the log-likelihoods of the rows of this process, of shape (count, 2), in nats.

    Args:
        model: the model before its first step.
        loss: makes the batches.
        batches: places of rows in the result, with the rows. Rows that do not count have no place.
        continues: whether another run trained the adapter, which then belongs to the reference model.
        references: gets a sign of life after each batch.
        count: number of rows of all processes.
    """
    trained = model.trained.eval()
    is_base = isinstance(trained, PeftModel) and not continues
    values = torch.zeros(count, 2)
    with trained.disable_adapter() if is_base else nullcontext(), mixed_precision(trained.device):
        for places, rows in batches:
            parts = [model.log_likelihoods_on_device(part) for part in loss.collate(rows)["parts"]]
            if places:
                values[torch.tensor(places)] = torch.cat(parts).reshape(2, -1).T.to(values.device)
            references.end_batch()
    return values
