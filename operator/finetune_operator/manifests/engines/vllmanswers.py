# SPDX-License-Identifier: Apache-2.0
"""vLLM in an evaluate pod."""

from collections.abc import Iterator
from typing import Final

from finetune_operator.manifests.engines.answeringengine import AnsweredModels, AnsweringEngine
from finetune_operator.manifests.engines.vllm import (
    LORA_RANKS,
    MAX_CONCURRENT_REQUESTS,
    engine_environment,
    lora_rank,
    served_models,
)
from finetune_trainer.contract.environment import ANSWERS_MODELS, SERVE_PORT


def vllm_answer_command(models: AnsweredModels) -> list[str]:
    """The command of a server. Requests set all that decides an answer, so that no file of a model does."""
    return ["vllm", "serve", f"{ANSWERS_MODELS}/{models.name}", *_options(models), *models.arguments]


def _options(models: AnsweredModels) -> Iterator[str]:
    if models.adapters:
        folders = {name: f"{ANSWERS_MODELS}/{name}" for name in models.adapters}
        yield from served_models(folders, lora_rank(models.max_rank))
    else:
        yield f"--served-model-name={models.name}"
    yield "--generation-config=vllm"
    yield "--max-model-len=auto"
    yield f"--max-num-seqs={MAX_CONCURRENT_REQUESTS}"
    if models.accelerators > 1:
        yield f"--tensor-parallel-size={models.accelerators}"
    yield from ("--host=127.0.0.1", f"--port={SERVE_PORT}")


VLLM_ANSWERING: Final = AnsweringEngine(
    highest_rank=LORA_RANKS[-1], command=vllm_answer_command, environment=engine_environment
)
