# SPDX-License-Identifier: Apache-2.0
"""Enum values of messages: stages, splits, formats, exit codes, failure reasons.

The module does not import pydantic, so that the preparation of rows can import it.
"""

from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Final, Literal

RULE_VERSIONS: Final = (1,)
"""Versions of the rules for reading and comparing rows that this release has, in ascending order.

A Dataset keeps the version of its first DatasetVersion, so that a new release neither reads a label
differently nor moves a row. docs/data.md describes each version.
"""
RULE_VERSION: Final = RULE_VERSIONS[-1]
"""Version of the rules for a new Dataset."""
ChatTemplateKwargs = dict[str, bool | int | float | str]
"""Arguments for the chat template. vLLM and transformers use the same name."""
RESERVED_TEMPLATE_ARGUMENTS: Final = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Names that the trainer, the engine or transformers set themselves."""
Stage = Literal["prepare", "preflight", "train", "evaluate", "score"]
"""Stages of runs and Datasets."""
ANALYZE: Final = "analyze"
ResultStage = Literal[Stage, "analyze"]
"""Stages that leave a result. `analyze` works for an endpoint."""
CheckpointType = Literal["Adapter", "Full"]
ADAPTER: Final = "Adapter"
FULL_MODEL: Final = "Full"
"""Type of a Checkpoint with all weights of a model. The method that produces it has the same name."""
DataFormat = Literal[
    "PromptCompletion",
    "ChatMessages",
    "CSV",
    "TSV",
    "Parquet",
    "Alpaca",
    "ShareGPT",
    "LabelStudio",
    "Doccano",
    "Preference",
    "KTO",
]
NearDuplicates = Literal["Off", "Keep", "Remove"]
SourceSplits = Literal["All", "TrainOnly"]
"""Splits that the rows of a source can be in."""
Finding = Literal["Off", "Warn", "Redact", "Fail"]
Subject = Literal["Tuned", "Base", "Prompted", "Live"]
SplitName = Literal["train", "validation", "test"]
TRAINING_SPLIT: Final[SplitName] = "train"
"""The split whose rows are learned."""
RowForm = Literal["PromptCompletion", "ChatMessages", "Preference", "KTO"]
"""Form of a row in a prepared dataset."""
COMPLETION_FORMS: Final[tuple[RowForm, ...]] = ("PromptCompletion", "ChatMessages")
"""Forms whose rows are trained on together. Rows of any other form are trained on alone."""


def join_names(names: Sequence[str], word: Literal["and", "or"] = "and") -> str:
    """Join names for a sentence: A, B and C."""
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last


class ExitCode(IntEnum):
    """Exit codes of a trainer process. The operator builds the podFailurePolicy of Jobs from them."""

    OK = 0
    INTERNAL = 1
    """Unexpected error. Counts as a failed attempt."""
    BAD_CONFIG = 10
    """Invalid config, model or method. Not retried."""
    BAD_DATA = 11
    """Invalid rows. Not retried."""
    STORE_UNAVAILABLE = 12
    """The store could not be read or written. Retried, and counts as a failed attempt."""
    PREEMPTED_SAVED = 20
    """The process received SIGTERM and saved its state. Never counts as a failure."""
    PEER_LOST = 21
    """Another pod of the run disappeared. Never counts as a failure."""


class FailureReason(StrEnum):
    """Reasons of a stage's failure. They become the reason of the Stalled condition."""

    INVALID_CONFIG = "InvalidConfig"
    CONTRACT_MISMATCH = "ContractMismatch"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SOURCE_TOO_LARGE = "SourceTooLarge"
    ACCESS_DENIED = "AccessDenied"
    ADDRESS_REFUSED = "AddressRefused"
    INVALID_CREDENTIALS = "InvalidCredentials"
    INVALID_DATA = "InvalidData"
    NO_TRAINING_ROWS = "NoTrainingRows"
    BASE_MODEL_NOT_FOUND = "BaseModelNotFound"
    BASE_MODEL_INVALID = "BaseModelInvalid"
    BASE_MODEL_DIGEST_MISMATCH = "BaseModelDigestMismatch"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    SEQUENCE_TOO_LONG = "SequenceTooLong"
    ARTIFACT_NOT_FOUND = "ArtifactNotFound"
    ARTIFACT_CORRUPT = "ArtifactCorrupt"
    FINGERPRINT_MISMATCH = "FingerprintMismatch"
    STORE_UNAVAILABLE = "StoreUnavailable"
    LOSS_NOT_FINITE = "LossNotFinite"
    LOSS_DIVERGED = "LossDiverged"
    OUT_OF_MEMORY = "OutOfMemory"
    PREDICTED_OUT_OF_MEMORY = "PredictedOutOfMemory"
    WRONG_IMAGE = "WrongImage"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    UNSUPPORTED_DEVICE = "UnsupportedDevice"
    CUSTOM_METRIC_FAILED = "CustomMetricFailed"
    STEP_TIMEOUT = "StepTimeout"
    RESTARTED_WITHOUT_PROGRESS = "RestartedWithoutProgress"
    INTERNAL = "Internal"
