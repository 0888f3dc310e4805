# SPDX-License-Identifier: Apache-2.0
"""Files that vLLM needs in addition to the models. The init container writes them after verification.

vLLM takes chat template and stop tokens from the base model, so options of its command replace them by those
of the adapters. One server has one template for all of its models.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import finetune_trainer
from finetune_trainer.contract.environment import VLLM_FOLDER, VLLM_PYTHON_FOLDER
from finetune_trainer.contract.vocabulary import FailureReason, join_names
from finetune_trainer.model.bundle import (
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
    BundleUnknown,
    read_adapter,
    read_base_bundle,
    read_chat_template,
    read_stop_ids,
    write_settings,
)
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store.failures import convert_write_errors

logger = logging.getLogger(__name__)


def check_loadable(adapter: Path, max_rank: int | None) -> None:
    """Refuse an adapter that vLLM cannot load. `max_rank`: highest rank; None: any.

    Raises StageFailure: INVALID_CONFIG, ARTIFACT_CORRUPT.
    """
    found = read_adapter(adapter)
    if found.use_dora:
        problem = "is DoRA"
    elif found.modules_to_save:
        problem = f"replaces whole modules: {join_names(found.modules_to_save)}"
    elif found.bias != "none":
        problem = f"has biases ({found.bias})"
    elif max_rank is not None and found.max_rank > max_rank:
        problem = f"has rank {found.max_rank}, and the server loads ranks up to {max_rank}"
    else:
        return
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"the adapter {adapter.name} {problem}, so vLLM cannot load it. Choose a ComputeProfile whose"
        " engine is Transformers, or train the adapter again with plain LoRA of a lower rank",
    )


def write_engine_files(destination: Path, base: Path, adapters: Sequence[Path]) -> None:
    """Write chat template, generation config and the middleware's package below `destination`.

    Args:
        destination: folder of the fetched models.
        base: folder of the base model, or of the whole model.
        adapters: folders of the adapters, with their bundles.

    Raises StageFailure: INVALID_CONFIG if one server cannot serve the adapters together, BASE_MODEL_INVALID
    if the model does not say how an answer ends, INTERNAL if `destination` is not writable.
    """
    folder = destination / VLLM_FOLDER
    template, stop_ids = _of_adapters(base, adapters) if adapters else _of_model(base)
    package = Path(finetune_trainer.__file__).parent
    with convert_write_errors(folder):
        folder.mkdir(exist_ok=True)
        (folder / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
        # Without the sampling parameters of the base model, which the Transformers engine ignores, too.
        write_settings(folder / GENERATION_CONFIG, {"eos_token_id": sorted(stop_ids)})
        shutil.copytree(
            package,
            folder / VLLM_PYTHON_FOLDER / package.name,
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    logger.info("wrote the files for vLLM into %s", folder)


def _of_adapters(base: Path, adapters: Sequence[Path]) -> tuple[str, frozenset[int]]:
    templates = {each.name: read_chat_template(each) for each in adapters}
    (template, *others) = set(templates.values())
    if others:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"{join_names(list(templates))} were trained with different chat templates, and a vLLM server "
            "has one"
            " for all of its models. Serve them from separate InferenceDeployments, or choose a"
            " ComputeProfile whose engine is Transformers",
        )
    return template, read_stop_ids(base).union(*map(read_stop_ids, adapters))


def _of_model(base: Path) -> tuple[str, frozenset[int]]:
    """Template and stop tokens of a model without adapters."""
    stop_ids = read_stop_ids(base)
    if (base / CHAT_TEMPLATE).is_file() and stop_ids:
        return read_chat_template(base), stop_ids
    try:
        bundle = read_base_bundle(base)
    except (BundleUnknown, OSError, ValueError) as error:
        raise StageFailure(
            FailureReason.BASE_MODEL_INVALID,
            f"{base.name}: {error}, so vLLM does not know how an answer ends. Add eos_token_id to the model's"
            f" {GENERATION_CONFIG}, or choose a ComputeProfile whose engine is Transformers",
        ) from error
    return bundle.chat_template, frozenset(bundle.stop_ids)
