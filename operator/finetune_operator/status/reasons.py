# SPDX-License-Identifier: Apache-2.0
"""All reasons of conditions and events."""

from enum import StrEnum
from typing import Final


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
    REFRESHED = "Refreshed"
    IMAGE_CURRENT = "ImageCurrent"
    FIELDS_READ = "FieldsRead"
    IN_SYNC = "InSync"
    SCORES_RECORDED = "ScoresRecorded"
    ROUTE_ACCEPTED = "RouteAccepted"


class Reason(StrEnum):
    """Reasons of conditions; failed stages also use those of the contract's `FailureReason`."""

    # under way
    PREPARING = "Preparing"
    PREFLIGHT = "Preflight"
    QUEUED = "Queued"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SCORING = "Scoring"
    PROMOTING = "Promoting"
    COLLECTING = "Collecting"
    CHECKING_STORE = "CheckingStore"
    ROLLING_OUT = "RollingOut"
    PREVIEW = "Preview"
    CANARY = "Canary"
    AWAITING_REPLICAS = "AwaitingReplicas"
    NO_CAPACITY_FOR_SURGE = "NoCapacityForSurge"
    SCALING = "Scaling"
    ROUTE_PENDING = "RoutePending"
    WAITING_FOR_DATASET = "WaitingForDataset"
    WAITING_FOR_CHECKPOINT = "WaitingForCheckpoint"
    WAITING_FOR_CHAMPION = "WaitingForChampion"
    STORING_BASE_MODEL = "StoringBaseModel"
    MERGING = "Merging"
    FILLING_MODEL_CACHE = "FillingModelCache"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    BUDGET_NOT_COUNTED = "BudgetNotCounted"
    SUSPENDING = "Suspending"
    CANCELLING = "Cancelling"
    CLEANING_UP = "CleaningUp"
    # done
    SUCCEEDED = "Succeeded"
    RESTORED = "Restored"
    SUSPENDED = "Suspended"
    PAUSED = "Paused"
    AWAITING_DECISION = "AwaitingDecision"
    BAKING = "Baking"
    AVAILABLE = "Available"
    SERVING = "Serving"
    ROUTE_ACCEPTED = "RouteAccepted"
    SCALED_TO_ZERO = "ScaledToZero"
    NOT_BELOW_FLOOR = "NotBelowSecurityFloor"
    PROMOTED = "Promoted"
    NOT_PROMOTED = "NotPromoted"
    AWAITING_APPROVAL = "AwaitingApproval"
    PROMOTION_DISABLED = "PromotionDisabled"
    REJECTED = "Rejected"
    # information only
    FIELDS_IGNORED = "FieldsIgnored"
    LIST_FULL = "ListFull"
    # blocked until a user acts
    PROFILE_NOT_FOUND = "ProfileNotFound"
    PROFILE_NOT_ALLOWED = "ProfileNotAllowed"
    PROFILE_INVALID = "ProfileInvalid"
    CUSTOM_CODE_NOT_ALLOWED = "CustomCodeNotAllowed"
    UNKNOWN_VALUES = "UnknownValues"
    NAMESPACE_TOO_LARGE = "NamespaceTooLarge"
    DEFAULT_PROFILE_CONFLICT = "DefaultProfileConflict"
    TOO_MANY_DEVICES = "TooManyDevices"
    TOO_MANY_NODES = "TooManyNodes"
    STORE_MISSING = "StoreMissing"
    STORE_NOT_FOUND = "StoreNotFound"
    STORE_NOT_SHAREABLE = "StoreNotShareable"
    BASE_MODEL_NOT_STORED = "BaseModelNotStored"
    MERGE_FAILED = "MergeFailed"
    MODEL_CACHE_NOT_FOUND = "ModelCacheNotFound"
    MODEL_CACHE_NOT_SHAREABLE = "ModelCacheNotShareable"
    MODEL_CACHE_NOT_FILLED = "ModelCacheNotFilled"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SECRET_NOT_FOUND = "SecretNotFound"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_VERSION_NOT_FOUND = "DatasetVersionNotFound"
    DATASET_FAILED = "DatasetFailed"
    DATASET_NOT_IN_STORE = "DatasetNotInStore"
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound"
    CHECKPOINT_NOT_IN_STORE = "CheckpointNotInStore"
    CHECKPOINT_REJECTED = "CheckpointRejected"
    IN_USE = "InUse"
    CLEANUP_FAILED = "CleanupFailed"
    BASE_MODEL_MISMATCH = "BaseModelMismatch"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    UNSCHEDULABLE = "Unschedulable"
    POD_NOT_STARTING = "PodNotStarting"
    POD_NOT_ENDING = "PodNotEnding"
    NODE_LOST = "NodeLost"
    NO_REPLICA_READY = "NoReplicaReady"
    BELOW_FLOOR = "BelowSecurityFloor"
    VERSION_UNKNOWN = "VersionUnknown"
    OVERRIDDEN = "Overridden"
    GATEWAY_API_NOT_INSTALLED = "GatewayAPINotInstalled"
    ROUTE_NOT_ACCEPTED = "RouteNotAccepted"
    FOREIGN_ROUTE_STATUS = "ForeignRouteStatus"
    KUEUE_NOT_INSTALLED = "KueueNotInstalled"
    QUEUE_NOT_FOUND = "QueueNotFound"
    QUEUE_NOT_ALLOWED = "QueueNotAllowed"
    PRIORITY_NOT_ALLOWED = "PriorityNotAllowed"
    NOT_ADMITTED = "NotAdmitted"
    PARALLELISM_CHANGED = "ParallelismChanged"
    FORBIDDEN = "Forbidden"
    QUOTA_EXCEEDED = "QuotaExceeded"
    # failed
    NOT_IMPLEMENTED = "NotImplemented"
    NAME_CONFLICT = "NameConflict"
    INVALID_SPEC = "InvalidSpec"
    WEIGHT_NOT_ACHIEVABLE = "WeightNotAchievable"
    CHECKPOINT_REPLACED = "CheckpointReplaced"
    GATE_FAILED = "GateFailed"
    EVALUATION_UNDECIDED = "EvaluationUndecided"
    VETOED = "Vetoed"
    CHAMPION_KEEPS_CHANGING = "ChampionKeepsChanging"
    STAGE_FAILED = "StageFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    EVICTED = "Evicted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    MAX_RUN_SECONDS_EXCEEDED = "MaxRunSecondsExceeded"
    CANCELLED = "Cancelled"
    RESULT_LOST = "ResultLost"
    ROLLOUT_FAILED = "RolloutFailed"
    ROLLED_BACK = "RolledBack"
    UNSUPPORTED_BY_ENGINE = "UnsupportedByEngine"


UNDER_WAY: Final = frozenset(
    {
        *(Reason.PREPARING, Reason.PREFLIGHT, Reason.QUEUED, Reason.TRAINING, Reason.EVALUATING),
        *(Reason.PROMOTING, Reason.COLLECTING, Reason.CHECKING_STORE, Reason.ROLLING_OUT, Reason.SCALING),
        *(Reason.WAITING_FOR_DATASET, Reason.WAITING_FOR_CHECKPOINT, Reason.SUSPENDING, Reason.CLEANING_UP),
        Reason.WAITING_FOR_CHAMPION,
        Reason.CANCELLING,
        Reason.SCORING,
        Reason.STORING_BASE_MODEL,
        Reason.MERGING,
        Reason.FILLING_MODEL_CACHE,
        Reason.PREVIEW,
        Reason.CANARY,
        Reason.NO_CAPACITY_FOR_SURGE,
        Reason.UNSCHEDULABLE,
        Reason.ROUTE_PENDING,
        Reason.BUDGET_EXHAUSTED,
        Reason.BUDGET_NOT_COUNTED,
    }
)
"""Reasons of `Reconciling` that need no user action; with any other reason the object is blocked."""


class EventReason(StrEnum):
    """Reasons of Kubernetes events."""

    STAGE_STARTED = "StageStarted"
    STAGE_FAILED = "StageFailed"
    DATASET_VERSION_CREATED = "DatasetVersionCreated"
    DATA_PROBLEMS = "DataProblems"
    PREFLIGHT_WARNING = "PreflightWarning"
    REFRESH_FAILED = "RefreshFailed"
    PREDICTED_TIGHT = "PredictedTight"
    CHECKPOINT_CREATED = "CheckpointCreated"
    PROFILE_ADVICE = "ProfileAdvice"
    EVALUATION_WARNING = "EvaluationWarning"
    EVALUATION_RENEWED = "EvaluationRenewed"
    GATE_FAILED = "GateFailed"
    VETOED = "Vetoed"
    PROMOTED = "Promoted"
    DEVICES_GIVEN_BACK = "DevicesGivenBack"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    CANCELLED = "Cancelled"
    CANCEL_IGNORED = "CancelIgnored"
    RECORDS_DELETED = "RecordsDeleted"
    HISTORY_LIMIT_EXCEEDED = "HistoryLimitExceeded"
    CONTENT_REMOVED = "ContentRemoved"
    CONTENT_KEPT = "ContentKept"
    ROLLOUT_STARTED = "RolloutStarted"
    ROOM_MADE = "RoomMade"
    ROLLOUT_SUCCEEDED = "RolloutSucceeded"
    ROLLOUT_FAILED = "RolloutFailed"
    ROLLED_BACK = "RolledBack"
    DRIFT_CORRECTED = "DriftCorrected"
    BLOCKED = "Blocked"
    NOT_IMPLEMENTED = "NotImplemented"
