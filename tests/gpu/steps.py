# SPDX-License-Identifier: Apache-2.0
"""The steps of the smoke test, in order: numbers before speed, and first what a short session needs."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from finetune_trainer.contract.method import Method
from tests.gpu import inference, machine, numerics, several, training
from tests.gpu.scene import GPUFigures, Scene
from tests.methods import NAMES

MAX_STEP_SECONDS: Final = 480
"""A lent machine runs one command for ten minutes at most."""
FIRST_METHODS: Final = ("LoRA", "QLoRA", "DPO")

Step = Callable[[Scene], GPUFigures]


def _methods(names: tuple[str, ...]) -> dict[str, Step]:
    return {training.method_step(name): partial(training.method, name=name) for name in names}


STEPS: Final[Mapping[str, Step]] = {
    "machine": machine.machine,
    "kernels": machine.kernels,
    "numbers": numerics.numbers,
    "attention": numerics.attention,
    **_methods(FIRST_METHODS),
    **{f"lora-8b-{tokens}": partial(training.long_rows, tokens=tokens) for tokens in (2048, 8192)},
    "beside-trl": training.beside_trl,
    "interrupted": training.interrupted,
    "out-of-memory": training.out_of_memory,
    "qlora-8b": training.quantized,
    "lora-8b-32768": partial(training.long_rows, tokens=32_768),
    **_methods(tuple(name for name in NAMES if name not in FIRST_METHODS)),
    "evaluate-and-serve": inference.evaluate_and_serve,
    "start-8b": training.starting,
    "ddp": partial(several.together, chosen=Method(type="LoRA"), sharding="Replicated"),
    "fsdp-full": partial(several.together, chosen=Method(type="Full"), sharding="Sharded"),
    "fsdp-qlora": partial(several.together, chosen=Method(type="QLoRA"), sharding="Sharded"),
    "kill-a-rank": several.killed_rank,
}
GUARDS: Final = ("machine", "numbers")
"""Steps without which the figures of later ones mean nothing: if one fails, no later one begins."""
