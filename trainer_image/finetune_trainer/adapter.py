"""What an adapter's own files say about the base model that it was trained from."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract import Digest, FailureReason
from finetune_trainer.failure import StageFailure

ADAPTER_CONFIG: Final = "adapter_config.json"


class _AdapterConfig(BaseModel):
    base_model_name_or_path: str | None = None


def check_base_model(folder: Path, base_model: Digest) -> None:
    """Refuse an adapter that was trained from another base model: it might load, and answer nonsense.

    The trainer writes the base model's digest where PEFT writes its name. A name that is no digest comes from
    other software, and a folder without an adapter holds a whole model: then nothing is compared.
    Raises StageFailure: BASE_MODEL_MISMATCH with both digests, ARTIFACT_CORRUPT.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return
    try:
        trained_from = _AdapterConfig.model_validate_json(path.read_bytes()).base_model_name_or_path or ""
    except ValidationError as error:
        raise StageFailure(
            FailureReason.ARTIFACT_CORRUPT, f"{path} is no configuration of an adapter: {error}"
        ) from error
    if trained_from.startswith("sha256:") and trained_from != base_model:
        raise StageFailure(
            FailureReason.BASE_MODEL_MISMATCH,
            f"the adapter {folder.name} was trained from base model {trained_from}, but this endpoint serves"
            f" {base_model}: set spec.baseModel.digest to the adapter's base model, or serve it from another"
            " InferenceDeployment",
        )
