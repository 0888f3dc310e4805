# SPDX-License-Identifier: Apache-2.0
"""How a stage ends: exit codes of its process, and failure reasons."""

from enum import IntEnum, StrEnum


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
    CUSTOM_METRIC_FAILED = "CustomMetricFailed"
    STEP_TIMEOUT = "StepTimeout"
    RESTARTED_WITHOUT_PROGRESS = "RestartedWithoutProgress"
    INTERNAL = "Internal"
