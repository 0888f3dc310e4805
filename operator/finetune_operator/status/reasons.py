"""Every reason that a condition or event may carry, in one place; messages say what to do next."""

from enum import StrEnum


class ConditionType(StrEnum):
    """Condition types. Ready, Reconciling and Stalled follow kstatus."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    SUSPENDED = "Suspended"
    DATASET_READY = "DatasetReady"
    PREFLIGHTED = "Preflighted"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    PROMOTED = "Promoted"
    AVAILABLE = "Available"


class Reason(StrEnum):
    """Reasons of conditions; failures of a stage add those of `contract.FailureReason`."""

    # under way
    PREPARING = "Preparing"
    PREFLIGHT = "Preflight"
    QUEUED = "Queued"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    PROMOTING = "Promoting"
    COLLECTING = "Collecting"
    ROLLING_OUT = "RollingOut"
    WAITING_FOR_DATASET = "WaitingForDataset"
    WAITING_FOR_CHECKPOINT = "WaitingForCheckpoint"
    SUSPENDING = "Suspending"
    # done
    SUCCEEDED = "Succeeded"
    RESTORED = "Restored"
    SUSPENDED = "Suspended"
    AVAILABLE = "Available"
    SERVING = "Serving"
    PROMOTED = "Promoted"
    NOT_PROMOTED = "NotPromoted"
    AWAITING_APPROVAL = "AwaitingApproval"
    REJECTED = "Rejected"
    GATES_PASSED = "GatesPassed"
    NO_GATES = "NoGates"
    # blocked, but may mend itself when somebody acts
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_ALLOWED = "ProfileNotAllowed"
    PROFILE_INVALID = "ProfileInvalid"
    DEFAULT_PROFILE_CONFLICT = "DefaultProfileConflict"
    TOO_MANY_DEVICES = "TooManyDevices"
    STORE_MISSING = "StoreMissing"
    STORE_NOT_FOUND = "StoreNotFound"
    STORE_NOT_SHAREABLE = "StoreNotShareable"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_VERSION_NOT_FOUND = "DatasetVersionNotFound"
    DATASET_FAILED = "DatasetFailed"
    DATASET_NOT_IN_STORE = "DatasetNotInStore"
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    UNSCHEDULABLE = "Unschedulable"
    POD_NOT_STARTING = "PodNotStarting"
    FORBIDDEN = "Forbidden"
    QUOTA_EXCEEDED = "QuotaExceeded"
    # ended badly
    NOT_IMPLEMENTED = "NotImplemented"
    NAME_CONFLICT = "NameConflict"
    INVALID_SPEC = "InvalidSpec"
    GATE_FAILED = "GateFailed"
    EVALUATION_UNDECIDED = "EvaluationUndecided"
    STAGE_FAILED = "StageFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    RESULT_LOST = "ResultLost"
    ROLLOUT_FAILED = "RolloutFailed"


class EventReason(StrEnum):
    """The fixed list of reasons of Kubernetes events."""

    STAGE_STARTED = "StageStarted"
    STAGE_SUCCEEDED = "StageSucceeded"
    STAGE_FAILED = "StageFailed"
    DATASET_VERSION_CREATED = "DatasetVersionCreated"
    CHECKPOINT_CREATED = "CheckpointCreated"
    GATES_PASSED = "GatesPassed"
    GATE_FAILED = "GateFailed"
    PROMOTED = "Promoted"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    ROLLOUT_STARTED = "RolloutStarted"
    ROLLOUT_SUCCEEDED = "RolloutSucceeded"
    ROLLOUT_FAILED = "RolloutFailed"
    BLOCKED = "Blocked"
    NOT_IMPLEMENTED = "NotImplemented"
