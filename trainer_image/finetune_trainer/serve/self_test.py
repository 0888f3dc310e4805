# SPDX-License-Identifier: Apache-2.0
"""Self-test before the first request: every model generates, and predicts what it did when it was trained."""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import torch
import transformers

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.generation import BASE_ADAPTER, GenerationBatch
from finetune_trainer.model.probe import ENGINE, dtype_name, largest_difference
from finetune_trainer.model.probe_record import Computation, ProbeRecord
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.loading import LoadedModels
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage
from finetune_trainer.serve.served_models import make_no_effect_failure, require_probe

NO_RECORDS: Final[Mapping[str, ProbeRecord]] = MappingProxyType({})

logger = logging.getLogger(__name__)


def generate_one_token_each(
    served: LoadedModels, prompts: Prompts, records: Mapping[str, ProbeRecord] = NO_RECORDS
) -> None:
    """Generate a token with every model, through the code path of requests.

    `records`: what models predicted when they were published, by served name.
    Raises StageFailure naming the model that fails, whose adapter changes no logit of its base model, or
    which differs from its record.
    """
    batch = GenerationBatch(served.model, mixed=served.mixed)
    for name, adapter in served.adapters.items():
        try:
            prompt = prompts.of_chat([ChatMessage(role="user", content=f"Hello, {name}")], name)
            # Each row joins the earlier ones with a prompt of another length; then all of them take a step.
            logits = batch.join([prompt], [adapter])
            stepped = batch.step([int(logits[-1].argmax())] * len(batch))
        except (RequestError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise _failure(name, f"{type(error).__name__}: {error}") from error
        if not torch.isfinite(logits).all() or not torch.isfinite(stepped).all():
            raise _failure(name, "its logits are not finite: the weights are damaged or overflow")
        if served.mixed and adapter != BASE_ADAPTER:
            tuned, base = GenerationBatch(served.model, mixed=True).join(
                [prompt] * 2, [adapter, BASE_ADAPTER]
            )
            if torch.equal(tuned, base):
                raise make_no_effect_failure(name)
        if name in records:
            _check_record(served, name, records[name])
        logger.info("model %s generates", name)


def _check_record(served: LoadedModels, name: str, record: ProbeRecord) -> None:
    batch = GenerationBatch(served.model, mixed=served.mixed)
    logits = batch.join(record.prompts, [served.adapters[name]] * len(record.prompts))
    difference = largest_difference(record.tuned, logits.float().log_softmax(-1).cpu())
    weights = next(served.model.parameters())
    computation = Computation(ENGINE, weights.device.type, dtype_name(weights.dtype), quantized=False)
    require_probe(name, record, computation, transformers.__version__, difference)


def _failure(name: str, reason: str) -> StageFailure:
    return StageFailure(
        FailureReason.BASE_MODEL_INVALID, f"model {name!r} could not generate a first token: {reason}"
    )
