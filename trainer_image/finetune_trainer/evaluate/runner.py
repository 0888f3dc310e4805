# SPDX-License-Identifier: Apache-2.0
"""The models in memory: one base model at a time, with the adapters of the subjects that share it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.evaluate.answering.trainer_side import RecordedAnswers, open_exchange
from finetune_trainer.evaluate.checks import ProbeCheck
from finetune_trainer.evaluate.estimates import TUNED
from finetune_trainer.evaluate.measured_model import MeasuredModel
from finetune_trainer.evaluate.measurement import MEMORY_ADVICE, RowMeasurement
from finetune_trainer.evaluate.subjects.opening import EvaluatedSubject, Weights
from finetune_trainer.model.device import OutOfMemory, catch_out_of_memory, release_memory
from finetune_trainer.model.loading import load_adapter, load_placed
from finetune_trainer.runtime.termination import StageFailure

if TYPE_CHECKING:
    from finetune_trainer.evaluate.task_measurement import TaskMeasurement


logger = logging.getLogger(__name__)


class SubjectModels:
    """Loads the model of each subject."""

    def __init__(
        self,
        config: EvaluateConfig,
        devices: Sequence[torch.device],
        on_token: Callable[[], None],
        probe: ProbeCheck,
        tasks: "TaskMeasurement | None" = None,
    ) -> None:
        """Load no model yet.

        Args:
            config: config of the stage.
            devices: the devices that hold the layers.
            on_token: called after each model and each generated token.
            probe: runs with the weights of Tuned before they are measured.
            tasks: done by each subject after its rows; None if there are none.
        """
        self._config = config
        self._devices = devices
        self._on_token = on_token
        self._probe = probe
        self._tasks = tasks
        self._exchange = open_exchange(config)
        self._model: PreTrainedModel | PeftModel | None = None
        self._base: tuple[Path, bool] | None = None
        """Folder of the base model in memory, and whether it is in 4 bits."""
        self._adapters: dict[Path, str] = {}
        """Names of its adapters by their folders."""

    def measure(self, subject: EvaluatedSubject, measurement: RowMeasurement) -> None:
        """Measure what is missing of a subject; loads no model if nothing is. Raises StageFailure."""
        is_probed = subject.name == TUNED and self._probe.is_pending
        has_tasks = self._tasks is not None and bool(self._tasks.log.missing(subject.name))
        has_rows = bool(measurement.missing(subject.name))
        if not (has_rows or is_probed or has_tasks):
            return
        answers = None
        if has_rows and self._exchange is not None:
            answers = RecordedAnswers(self._exchange, subject.name, subject.tokenizer)
        try:
            with catch_out_of_memory("loading the model", self._devices, 0, by_batch=False):
                model = self._load(subject.weights)
        except OutOfMemory as error:
            raise StageFailure(FailureReason.OUT_OF_MEMORY, f"{error}. {MEMORY_ADVICE}") from error
        self._on_token()
        with self._activated(model, subject.weights):
            if is_probed:
                self._probe.run(model.eval(), int(subject.tokenizer.pad_token_id))
                self._on_token()
            measured = MeasuredModel(
                model,
                subject.tokenizer,
                settings=self._config.generation,
                max_new_tokens=self._config.max_new_tokens,
                on_token=self._on_token,
                stop_ids=subject.stop_ids,
                answers=answers,
            )
            measurement.measure(subject.name, measured)
            if self._tasks is not None:
                self._tasks.measure(subject.name, subject.tokenizer, measured)

    def _load(self, weights: Weights) -> PreTrainedModel | PeftModel:
        if self._base != (weights.base, weights.quantized):
            # Two base models may not fit into memory.
            self._model, self._base, self._adapters = None, None, {}
            release_memory()
            logger.info("loading the model in %s", weights.base)
            self._model = load_placed(weights.base, self._devices, quantized=weights.quantized)
            self._base = (weights.base, weights.quantized)
        assert self._model is not None  # noqa: S101 - loaded with its base
        if weights.adapter is not None and weights.adapter not in self._adapters:
            name = f"adapter-{len(self._adapters)}"
            logger.info("loading the adapter in %s", weights.adapter)
            self._model = load_adapter(self._model, weights.adapter, name=name)
            self._adapters[weights.adapter] = name
        return self._model

    def _activated(self, model: PreTrainedModel | PeftModel, weights: Weights) -> AbstractContextManager[Any]:
        if not isinstance(model, PeftModel):
            return nullcontext()
        if weights.adapter is None:
            return model.disable_adapter()
        model.set_adapter(self._adapters[weights.adapter])
        return nullcontext()
