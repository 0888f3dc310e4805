# SPDX-License-Identifier: Apache-2.0
"""Adapts the events of transformers' Trainer to our callbacks."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from finetune_trainer.train.callbacks.state import Callback


class Events(TrainerCallback):
    """Passes each event to the callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.begin(state.global_step, state.epoch or 0.0)

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.begin_step()

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.end_batch(state.global_step)

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.before_update(state.global_step, kwargs["optimizer"])

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.end_step(state.global_step, state.epoch or 0.0)
