# SPDX-License-Identifier: Apache-2.0
"""Merge an adapter into its base model, so that an engine that cannot load the adapter serves it.

The merged weights are bfloat16, in the form of a whole model. They are derived from the Checkpoint in the
store: made once for each Checkpoint, and removed with it.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import MergeConfig, MergedWeights
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.bundle import (
    PROCESSOR_FILES,
    Bundle,
    check_base_model,
    read_chat_template,
    read_stop_ids,
    require_bundle,
)
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.model.probe import (
    ENGINE,
    PromptIds,
    compute_probe,
    dtype_name,
    largest_difference,
    log_probabilities,
    probe_prompts,
)
from finetune_trainer.model.probe_record import Computation, ProbeRecord, read_record, write_record
from finetune_trainer.rooted_open import copy_file
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.served_models import require_probe
from finetune_trainer.store import DerivedRef, Store, open_store
from finetune_trainer.store.download_lock import download_lock
from finetune_trainer.tokens.chat_template import load_tokenizer

WEIGHTS: Final = "merged-bfloat16"
PROBE: Final = "merged-bfloat16-probe"
"""Names of the derived folders of a Checkpoint."""
DTYPE: Final = torch.bfloat16
DEVICE: Final = torch.device("cpu")
COMPUTATION: Final = Computation(ENGINE, DEVICE.type, dtype_name(DTYPE), quantized=False)
"""What computes the predictions that are compared."""

logger = logging.getLogger(__name__)


def run(config: MergeConfig) -> MergedWeights:
    """Merge the adapter unless the store has its merged weights, whose files are then verified.

    If several processes merge the same adapter, one of them does it and the others wait.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT if a file is damaged, or the merged weights do
    not predict what the adapter does, BASE_MODEL_MISMATCH, STORE_UNAVAILABLE.
    """
    store, checkpoint = open_store(config.store), config.checkpoint
    name = f"{WEIGHTS}-{checkpoint.digest.removeprefix('sha256:')}"
    find = partial(_find, store, checkpoint)
    with download_lock(name, config.owner.uid, find, store, threading.Event()) as found:
        return found or _Merge(config, store).publish()


def _find(store: Store, checkpoint: ArtifactRef) -> MergedWeights | None:
    weights, probe = store.derived(checkpoint, WEIGHTS), store.derived(checkpoint, PROBE)
    if weights is None or probe is None:
        return None
    for each in (weights, probe):
        store.artifact(each, verify=True)
    logger.info("the store has %s", store.uri(weights))
    return MergedWeights(weights=weights.digest, probe=probe.digest)


class _Merge:
    def __init__(self, config: MergeConfig, store: Store) -> None:
        base = ArtifactRef(kind="models", digest=config.base_model)
        self._store, self._checkpoint = store, config.checkpoint
        self._base = store.artifact(base, verify=True)
        self._adapter = store.artifact(config.checkpoint, verify=True)
        check_base_model(self._adapter, config.base_model)
        require_bundle(self._adapter, store.uri(config.checkpoint))
        self._record = _record(store, config)

    def publish(self) -> MergedWeights:
        """Merge, compare, and publish the weights and then their probe."""
        tokenizer = load_tokenizer(self._base)
        padding = tokenizer.pad_token_id
        tuned = load_adapter(load_base(self._base, DTYPE, DEVICE), self._adapter, merges=True)
        prompts = self._record.prompts if self._record is not None else probe_prompts(tokenizer)
        before = self._probe(tuned, prompts, padding)
        logger.info("merging %s", self._store.uri(self._checkpoint))
        merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
        predicted = log_probabilities(merged, before.prompts, padding)
        for record in filter(None, (before, self._record)):
            difference = largest_difference(record.tuned, predicted)
            require_probe(self._checkpoint.digest, record, COMPUTATION, transformers.__version__, difference)
        weights = self._publish(WEIGHTS, lambda folder: self._write(merged, folder))
        after = self._probe(merged, before.prompts, padding)
        probe = self._publish(PROBE, lambda folder: write_record(after, folder))
        return MergedWeights(weights=weights, probe=probe)

    def _probe(self, model: PreTrainedModel | PeftModel, prompts: PromptIds, padding: int) -> ProbeRecord:
        record = compute_probe(model, prompts, padding, stored_dtype=DTYPE)
        if record is None:
            raise StageFailure(
                FailureReason.ARTIFACT_CORRUPT,
                f"{self._store.uri(self._checkpoint)}: its predictions in bfloat16 are not finite, so it"
                " cannot be merged; train it again with a lower hyperparameters.learningRate",
            )
        return record

    def _write(self, merged: PreTrainedModel, folder: Path) -> None:
        """Write the model with the tokenizer, the template and the stop tokens of the adapter."""
        merged.save_pretrained(folder)
        for name in PROCESSOR_FILES:
            if (self._base / name).exists():
                copy_file(self._base / name, folder / name, self._base)
        self._bundle().write(folder)

    def _bundle(self) -> Bundle:
        stop_ids = tuple(sorted(read_stop_ids(self._adapter)))
        return Bundle(self._base, read_chat_template(self._adapter), stop_ids)

    def _publish(self, name: str, write: Callable[[Path], None]) -> Digest:
        with self._store.staging() as staging:
            write(staging)
            digest = self._store.publish(self._checkpoint, staging)
        self._store.name_derived(DerivedRef(self._checkpoint, digest), name)
        return digest


def _record(store: Store, config: MergeConfig) -> ProbeRecord | None:
    """What the adapter predicted when it was published; None if that is not known."""
    if config.probe is None:
        return None
    ref = DerivedRef(config.checkpoint, config.probe)
    if not store.has(ref):
        logger.warning("%s was deleted: the merged weights are not compared with it", store.uri(ref))
        return None
    return read_record(store.artifact(ref, verify=True), store.uri(ref))
