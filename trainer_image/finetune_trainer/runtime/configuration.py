# SPDX-License-Identifier: Apache-2.0
"""Parses configs. Every error names the field and says what to do."""

import json
from typing import Any

from pydantic import ValidationError

from finetune_trainer.contract.base import CONTRACT_VERSION, CONTRACT_VERSIONS
from finetune_trainer.contract.configs import CONFIG_ADAPTER, AnyConfig
from finetune_trainer.contract.environment import CONFIG_ENV, MAX_CONFIG_BYTES
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.termination import StageFailure

SAME_RELEASE = "set spec.images.trainer of the ComputeProfile to the image of the operator's release"


def parse(text: str | None) -> AnyConfig:
    """Parse the config in `text`. Raises StageFailure: INVALID_CONFIG or CONTRACT_MISMATCH."""
    raw = decode(text)
    contract = raw.get("contract", CONTRACT_VERSION)
    if contract not in CONTRACT_VERSIONS:
        versions = " and ".join(map(str, CONTRACT_VERSIONS))
        raise StageFailure(
            FailureReason.CONTRACT_MISMATCH,
            f"contract: the operator uses version {contract}, and this trainer image supports {versions};"
            f" {SAME_RELEASE}",
        )
    try:
        return CONFIG_ADAPTER.validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = any(problem["type"] == "extra_forbidden" for problem in problems)
        listed = "; ".join(f"{_field(problem['loc'])}: {problem['msg']}" for problem in problems)
        raise StageFailure(
            FailureReason.CONTRACT_MISMATCH if unknown else FailureReason.INVALID_CONFIG,
            f"{listed}; {SAME_RELEASE}",
        ) from error


def decode(text: str | None) -> dict[str, Any]:
    """Decode the config into JSON types, without validation. Raises StageFailure (INVALID_CONFIG)."""
    if text is None:
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"no config: set {CONFIG_ENV}, or pass --config FILE"
        )
    size = len(text.encode(errors="surrogateescape"))
    if size > MAX_CONFIG_BYTES:
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"the config has {size} bytes; the limit is {MAX_CONFIG_BYTES}"
        )
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise StageFailure(FailureReason.INVALID_CONFIG, f"the config is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"the config is a JSON {type(raw).__name__}, not an object"
        )
    return raw


def _field(location: tuple[int | str, ...]) -> str:
    # The first part is the stage, which selects the config's model.
    return ".".join(str(part) for part in location[1:]) or "stage"
