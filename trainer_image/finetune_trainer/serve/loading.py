# SPDX-License-Identifier: Apache-2.0
"""Load models from folders. An invalid model ends the server before it is ready.

Weights keep their stored dtype, usually bfloat16. On a CPU that multiplies bfloat16, a token takes less time
than in float32, and the gain grows with the requests per pass. On other CPUs weights are loaded as float32.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import FULL_MODEL, FailureReason
from finetune_trainer.model.bundle import read_chat_template, read_stop_ids, require_bundle
from finetune_trainer.model.device import OutOfMemory, catch_out_of_memory
from finetune_trainer.model.dora import fix_magnitudes
from finetune_trainer.model.generation import BASE_ADAPTER, can_leave_batch
from finetune_trainer.model.loading import context_length, load_placed, visible_devices
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.detokenization import AnswerReaders
from finetune_trainer.serve.served_models import BASE_NAME
from finetune_trainer.tokens.chat_template import load_tokenizer, stop_token_ids
from finetune_trainer.tokens.reasoning import PARSERS, ReasoningParser, find_parser

_ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModels:
    """The loaded models of one endpoint."""

    model: torch.nn.Module
    """The base model, wrapped in a PEFT model if there are adapters."""
    adapters: Mapping[str, str]
    """PEFT's adapter name for each served name."""
    tokenizer: PreTrainedTokenizerBase
    chat_templates: Mapping[str, str]
    """The chat template of each adapter's served name. Base models and whole ones have the tokenizer's."""
    readers: AnswerReaders
    """Readers of the answers of each served name."""
    stop_ids: frozenset[int]
    context_length: int
    """Max tokens of prompt and answer together."""
    vocabulary: int
    """Size of the vocabulary; token ids are below it."""

    @property
    def mixed(self) -> bool:
        """Whether each row of a batch names its adapter."""
        return isinstance(self.model, PeftModel)


def load(config: ServeConfig) -> LoadedModels:
    """Load all models of the config, which takes seconds to minutes. Raises StageFailure."""
    root = Path(config.models_path)
    parser = _parser(config)
    full = next((model for model in config.models if model.type == FULL_MODEL), None)
    folder = root / (full.folder if full else config.base_folder)
    if not (folder / "config.json").is_file():
        raise StageFailure(
            FailureReason.BASE_MODEL_NOT_FOUND,
            f"{folder} has no config.json, so it is not a model. If the endpoint pins an adapter by uri, set"
            " pin.type to Adapter",
        )
    logger.info("loading the model in %s", folder)
    tokenizer = load_tokenizer(folder)
    base = _load_base(folder)
    _check_layers(base, folder)
    adapters = {full.name if full else BASE_NAME: BASE_ADAPTER}
    model: torch.nn.Module = base
    if not full and config.models:
        # Not the models' names: PEFT turns adapter names into module names, which must not contain a dot.
        peft_names = {served.name: f"adapter-{number}" for number, served in enumerate(config.models)}
        adapters |= peft_names
        model = _with_adapters(base, config.models, peft_names, root)
    bundled = {} if full else {served.name: root / served.folder for served in config.models}
    chat_templates = {name: read_chat_template(place) for name, place in bundled.items()}
    stop_ids = {*stop_token_ids(tokenizer, base.generation_config)}
    return LoadedModels(
        model=model.eval(),
        adapters=adapters,
        tokenizer=tokenizer,
        chat_templates=chat_templates,
        readers=AnswerReaders(tokenizer, chat_templates, parser),
        stop_ids=frozenset(stop_ids.union(*map(read_stop_ids, bundled.values()))),
        context_length=min(config.max_model_length, context_length(base.config) or config.max_model_length),
        vocabulary=base.config.get_text_config().vocab_size,
    )


def _parser(config: ServeConfig) -> ReasoningParser | None:
    if config.reasoning_parser is None:
        return None
    parser = find_parser(config.reasoning_parser)
    if parser is None:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"spec.serving.reasoningParser: the engine Transformers has no parser"
            f" {config.reasoning_parser!r}; remove the field, or use one of"
            f" {', '.join(parser.name for parser in PARSERS)}",
        )
    return parser


def _load_base(folder: Path) -> PreTrainedModel:
    devices = visible_devices()
    try:
        with catch_out_of_memory("loading the model", devices, 0, by_batch=False):
            return load_placed(folder, devices)
    except OutOfMemory as error:
        raise StageFailure(
            FailureReason.OUT_OF_MEMORY,
            f"{error}. Raise spec.compute.devices of the endpoint, or choose a ComputeProfile with more"
            " memory per device",
        ) from error


def _check_layers(base: PreTrainedModel, folder: Path) -> None:
    """Refuse layers with state other than keys and values: their rows cannot join and leave a batch."""
    if not can_leave_batch(base.config):
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"{folder}: the Transformers engine serves models with full or sliding-window attention only, not"
            f" {base.config.model_type!r}; choose a ComputeProfile whose engine is VLLM",
        )


def _with_adapters(
    base: PreTrainedModel, models: tuple[ServedModel, ...], peft_names: Mapping[str, str], root: Path
) -> PeftModel:
    peft_model: PeftModel | None = None
    for served in models:
        folder = root / served.folder
        for name in _ADAPTER_FILES:
            if not (folder / name).is_file():
                raise StageFailure(
                    FailureReason.ARTIFACT_NOT_FOUND,
                    f"model {served.name!r}: {folder / name} is missing, so the folder is not an adapter. If"
                    " the endpoint pins a full model by uri, set pin.type to Full",
                )
        require_bundle(folder, f"model {served.name!r}")
        logger.info("loading the adapter in %s as %s", folder, served.name)
        try:
            if peft_model is None:
                config = PeftConfig.from_pretrained(str(folder))
                _check_method(served, config)
                peft_model = PeftModel(base, config, peft_names[served.name])
            result = peft_model.load_adapter(str(folder), peft_names[served.name])
            _check_method(served, peft_model.peft_config[peft_names[served.name]])
        except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
            raise _unfit(served, folder, str(error)) from error
        # PEFT only warns about these. The adapter would have less effect than trained, or none.
        unmatched = [*result.unexpected_keys, *result.missing_keys]
        if unmatched:
            raise _unfit(served, folder, f"unmatched weights: {', '.join(unmatched[:3])}")
        fix_magnitudes(peft_model, peft_names[served.name])
    assert peft_model is not None  # noqa: S101 - called with at least one model
    return peft_model


def _check_method(served: ServedModel, config: PeftConfig) -> None:
    if config.peft_type != PeftType.LORA:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"model {served.name!r}: only LoRA adapters (including rsLoRA and DoRA) can share a base model,"
            f" and this one uses {config.peft_type}; merge it into its base model and serve that as Full",
        )


def _unfit(served: ServedModel, folder: Path, reason: str) -> StageFailure:
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"model {served.name!r}: the adapter in {folder} does not fit the base model: {reason}",
    )
