"""Self-test before the first request: every model generates a token, and every adapter has an effect."""

import logging

import torch

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.model.generationbatch import BASE_ADAPTER, GenerationBatch
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.serve.errors import RequestError
from finetune_trainer.serve.loading import LoadedModels
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage

logger = logging.getLogger(__name__)


def generate_one_token_each(served: LoadedModels, prompts: Prompts) -> None:
    """Generate a token with every model, through the code path of requests.

    Raises StageFailure naming the model that fails, or whose adapter changes no logit of its base model.
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
                raise _without_effect(name)
        logger.info("model %s generates", name)


def _without_effect(name: str) -> StageFailure:
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"model {name!r}: its adapter changes nothing: all logits equal those of the base model. Train it"
        " again with a higher hyperparameters.learningRate, or pin another Checkpoint",
    )


def _failure(name: str, reason: str) -> StageFailure:
    return StageFailure(
        FailureReason.BASE_MODEL_INVALID, f"model {name!r} could not generate a first token: {reason}"
    )
