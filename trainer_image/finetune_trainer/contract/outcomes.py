"""How a stage ends: the exit codes of its process, and the reasons for which it may fail."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """How a trainer process ends; the Jobs' podFailurePolicy is built from these."""

    OK = 0
    INTERNAL = 1
    """Unforeseen; counts as a failed attempt."""
    BAD_CONFIG = 10
    """Config, model or method cannot work; trying again is useless."""
    BAD_DATA = 11
    """The rows are at fault; trying again is useless."""
    STORE_UNAVAILABLE = 12
    """The store could not be read or written; counts, and is tried again."""
    PREEMPTED_SAVED = 20
    """SIGTERM arrived and the state is saved; never counts as a failure."""
    PEER_LOST = 21
    """Another pod of this run went away; never counts as a failure."""


class FailureReason(StrEnum):
    """Reasons a stage may fail with; they become the reason of the Stalled condition."""

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
    STEP_TIMEOUT = "StepTimeout"
    RESTARTED_WITHOUT_PROGRESS = "RestartedWithoutProgress"
    INTERNAL = "Internal"
