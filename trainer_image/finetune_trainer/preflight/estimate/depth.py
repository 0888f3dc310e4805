# SPDX-License-Identifier: Apache-2.0
"""The figures of a deep model from those of two shallow ones with the same layers."""

import copy
from collections.abc import Callable
from typing import Any, Final

from transformers import PretrainedConfig

from finetune_trainer.preflight.estimate.fakestep import StepMeasure

MAX_PERIOD: Final = 8
"""Longest pattern of layer types that is searched for."""


def with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of the config with the first layers only."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return shallow


def period(config: PretrainedConfig) -> int:
    """Number of layers after which the types of layers repeat; 1 if they have no such pattern."""
    types: list[Any] = list(getattr(config.get_text_config(), "layer_types", None) or [])
    for length in range(1, MAX_PERIOD + 1):
        if all(types[at] == types[at - length] for at in range(length, len(types))):
            return length
    return 1


def measure_at_depth(
    config: PretrainedConfig, measure: Callable[[PretrainedConfig], StepMeasure]
) -> StepMeasure:
    """What `measure` returns for a config, from two models of a few layers.

    Equal layers add equal amounts to every figure: to the peak while the first or the last layers are
    computed, to the weights, and to the operations. The two models differ by one period of layers, and the
    shallower one has the same layers at its end as the whole model.
    """
    layers: int = config.get_text_config().num_hidden_layers
    step = period(config)
    shallow = max(2, step) + (layers - max(2, step)) % step
    if layers <= shallow + step:
        return measure(config)
    first, second = (measure(with_depth(config, depth)) for depth in (shallow, shallow + step))
    periods = (layers - shallow) // step

    def extrapolated(low: int, high: int) -> int:
        return low + (high - low) * periods

    low_ends, high_ends = _ends(first, shallow, step), _ends(second, shallow + step, step)
    return StepMeasure(
        # With as many layers as a period has, what is outside of the layers would count as a last layer.
        peaks={
            phase: extrapolated(low_ends[phase], high_ends[phase])
            for phase in low_ends.keys() & high_ends.keys()
        },
        **{
            name: extrapolated(getattr(first, name), getattr(second, name))
            for name in ("frozen_bytes", "trained_bytes", "matmul_flops", "attention_flops")
        },
    )


def _ends(measured: StepMeasure, layers: int, step: int) -> dict[tuple[str, int], int]:
    """Peaks of the first and the last layers, which count from -1."""
    ends: dict[tuple[str, int], int] = {}
    for (phase, index), bytes_ in measured.peaks.items():
        if index < step:
            ends[phase, index] = bytes_
        if index >= layers - step:
            ends[phase, index - layers] = bytes_
    return ends
