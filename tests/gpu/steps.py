# SPDX-License-Identifier: Apache-2.0
"""The steps of the smoke test, in order."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from tests.gpu import inference, machine, training
from tests.gpu.scene import GPUFigures, Scene
from tests.methods import NAMES

MAX_STEP_SECONDS: Final = 480
"""A lent machine runs one command for ten minutes at most."""

Step = Callable[[Scene], GPUFigures]

STEPS: Final[Mapping[str, Step]] = {
    "machine": machine.machine,
    "kernels": machine.kernels,
    **{f"method-{name.replace(' ', '-')}": partial(training.method, name=name) for name in NAMES},
    "interrupted": training.interrupted,
    "start-8b": training.starting,
    "evaluate-and-serve": inference.evaluate_and_serve,
    **{f"lora-8b-{tokens}": partial(training.long_rows, tokens=tokens) for tokens in (2048, 8192, 32_768)},
    "qlora-8b": training.quantized,
    "lora-8b-beside-trl": training.beside_trl,
}
