# SPDX-License-Identifier: Apache-2.0
"""Settings and base model of an adapter, read from its own files."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.failure import StageFailure

ADAPTER_CONFIG: Final = "adapter_config.json"


class AdapterConfig(BaseModel):
    """The fields that are read from PEFT's `adapter_config.json`."""

    base_model_name_or_path: str | None = None
    r: int = 8
    lora_alpha: int = 8
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    use_rslora: bool = False
    use_dora: bool = False
    modules_to_save: tuple[str, ...] | None = None
    bias: str = "none"
    rank_pattern: dict[str, int] = {}

    @property
    def max_rank(self) -> int:
        """Highest rank of an adapted module."""
        return max((self.r, *self.rank_pattern.values()))

    @property
    def lora(self) -> LoRA:
        """The LoRA settings; `target_modules` lists all adapted modules, sorted."""
        return LoRA(
            r=self.r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            target_modules=tuple(sorted(self.target_modules)),
            rslora=self.use_rslora,
            dora=self.use_dora,
        )


def read_adapter(folder: Path) -> AdapterConfig:
    """Read the adapter in `folder`. Raises StageFailure (ARTIFACT_CORRUPT) if there is none, OSError."""
    path = folder / ADAPTER_CONFIG
    try:
        return AdapterConfig.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT, f"{path} is not the configuration of an adapter: {error}"
        ) from error


def check_base_model(folder: Path, base_model: Digest) -> None:
    """Refuse an adapter that was trained from another base model: it might load, but generate nonsense.

    The trainer writes the base model's digest where PEFT writes its name. Nothing is compared if the name is
    not a digest, because other software wrote it, or if the folder holds a whole model instead of an adapter.
    Raises StageFailure: BASE_MODEL_MISMATCH with both digests, ARTIFACT_CORRUPT.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    trained_from = read_adapter(folder).base_model_name_or_path or ""
    if trained_from.startswith("sha256:") and trained_from != base_model:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"the adapter {folder.name} was trained from base model {trained_from}, but this endpoint serves"
            f" {base_model}: set spec.baseModel.digest to the adapter's base model, or serve it from another"
            " InferenceDeployment",
        )
