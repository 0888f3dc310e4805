# SPDX-License-Identifier: Apache-2.0
"""What each condition, reason and event means: the tables of docs/conditions.md, in the order of the page.

Texts are Markdown, with links relative to docs/.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Final, NamedTuple, TypeAlias

from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import FailureReason

Reasons: TypeAlias = tuple[Reason | FailureReason, ...]
"""Reasons of conditions that one text is about."""

Meanings: TypeAlias = Mapping[Reasons, str]
"""Texts by the reasons that they are about."""


class ConditionMeaning(NamedTuple):
    """When a condition is True, on the objects that have it."""

    type: ConditionType
    objects: str
    true_when: str


class EventMeaning(NamedTuple):
    """Types of some events, in the order of their reasons, and the objects that they are about."""

    reasons: tuple[EventReason, ...]
    types: str
    about: str


CONDITIONS: Final = (
    ConditionMeaning(
        ConditionType.DATASET_READY,
        "FineTuneJob",
        "the DatasetVersion that the run trains on is recorded in `status.resolved`",
    ),
    ConditionMeaning(
        ConditionType.PREFLIGHTED,
        "FineTuneJob",
        "base model, template and lengths are checked, and hyperparameters are chosen",
    ),
    ConditionMeaning(ConditionType.TRAINED, "FineTuneJob", "the run's Checkpoints are recorded"),
    ConditionMeaning(
        ConditionType.EVALUATED,
        "FineTuneJob, Evaluation",
        "scores, gates and verdict are recorded. False: the verdict is being renewed, because the champion "
        "has changed",
    ),
    ConditionMeaning(
        ConditionType.PROMOTED,
        "Checkpoint",
        "it is, or was, the champion of its model line; the message of False states why not",
    ),
    ConditionMeaning(ConditionType.AVAILABLE, "DatasetVersion", "its content is in a store"),
    ConditionMeaning(
        ConditionType.AVAILABLE,
        "InferenceDeployment",
        "a replica of the serving revision is ready, whatever the state of a rollout",
    ),
    ConditionMeaning(
        ConditionType.IMAGE_CURRENT,
        "InferenceDeployment, if the chart sets `trainerImage.securityFloor`",
        "the serving image has that version or a newer one",
    ),
    ConditionMeaning(
        ConditionType.IN_SYNC,
        "InferenceDeployment",
        "False: another client changes the serving Deployment, and the operator's correction did not "
        "persist ([drift](endpoints.md#drift)). Absent otherwise",
    ),
    ConditionMeaning(
        ConditionType.ROUTE_ACCEPTED,
        "InferenceDeployment with `spec.traffic`, or with a route that the operator may not delete",
        "all gateways have accepted the present HTTPRoute ([gateway](endpoints.md#gateway)); False or "
        "Unknown: the message names the gateway and what it reported",
    ),
    ConditionMeaning(
        ConditionType.FIELDS_READ,
        "Dataset",
        "False: nothing reads a field of the rows that has [a meaning for "
        "training](data.md#fields-with-a-meaning) by its name. Absent otherwise",
    ),
    ConditionMeaning(
        ConditionType.SCORES_RECORDED,
        "Checkpoint",
        "False: `status.evaluations` has no place for newer scores ([result](evaluation.md#result)). Absent "
        "otherwise",
    ),
    ConditionMeaning(
        ConditionType.REFRESHED,
        "Dataset that is Ready",
        "the most recent re-check of the source succeeded. False explains why it failed; the latest "
        "DatasetVersion stays in use. Absent until the first re-check",
    ),
)

IN_PROGRESS: Final[Meanings] = {
    (
        Reason.PREPARING,
        Reason.PREFLIGHT,
        Reason.TRAINING,
        Reason.EVALUATING,
        Reason.SCORING,
        Reason.PROMOTING,
    ): "the stage that runs; `Scoring` computes [custom metrics](judges.md#custom-metrics)",
    (Reason.SEARCHING,): "of a FineTuneSweep: its trials train",
    (Reason.QUEUED,): (
        "the stage's Job exists, and its pod, or one of [several](failures.md#runs-in-several-pods), has not "
        "started; an endpoint waits for other endpoints of its profile (`limits.concurrentRollouts`)"
    ),
    (Reason.COLLECTING,): (
        "a pod was removed before the operator read its result; a small pod reads the result from the store"
    ),
    (Reason.CHECKING_STORE,): (
        "a small pod uses the store as `train` or `evaluate` would, before devices are requested "
        "[again](failures.md#retries)"
    ),
    (Reason.ROLLING_OUT,): "a new revision of an endpoint starts next to the serving one",
    (Reason.AWAITING_REPLICAS,): (
        "the revision of an endpoint that gets all requests next has no ready pod, so [another one that "
        "has](rollouts.md#canary) keeps its share. The message has what the pod waits for"
    ),
    (Reason.CANARY,): (
        "a new revision of an endpoint gets the part of the requests that its [step](rollouts.md#canary) "
        "allows"
    ),
    (Reason.PREVIEW,): (
        "a new revision of an endpoint is ready behind the [preview Service](rollouts.md#bluegreen), and is "
        "promoted by itself later"
    ),
    (Reason.NO_CAPACITY_FOR_SURGE,): (
        "no node or quota has room for a new revision of an endpoint next to the old one, which keeps "
        "serving ([rollouts](rollouts.md#without-capacity))"
    ),
    (Reason.ROUTE_PENDING,): (
        "the HTTPRoute of an endpoint is written, and a gateway has not taken it yet "
        "([gateway](endpoints.md#gateway)); as a reason of `RouteAccepted=Unknown`, too"
    ),
    (Reason.SCALING,): "replicas of the serving revision restart or are added",
    (Reason.BUDGET_EXHAUSTED,): (
        "the namespace has used its [budget](profiles.md#budgets) of the ComputeProfile, or its other Jobs "
        "[reserve](profiles.md#budgets) what is left; the message has the command that lists them, and when "
        "the next stage with devices starts"
    ),
    (Reason.BUDGET_NOT_COUNTED,): (
        "the operator has not counted what the namespace uses of the ComputeProfile: it cannot write the "
        "profile's status, or the budget was set seconds ago"
    ),
    (Reason.WAITING_FOR_DATASET,): (
        "the Dataset has not prepared its newest rows yet; if it waits for a user, the message repeats what "
        "for"
    ),
    (Reason.WAITING_FOR_CHECKPOINT,): "an endpoint follows a model line without a champion",
    (Reason.WAITING_FOR_CHAMPION,): (
        "a run [continues from the champion](methods.md#continuing-from-a-champion) of a model line, and "
        "the line has none yet"
    ),
    (Reason.CANCELLING,): (
        "the pods of a [cancelled](failures.md#cancelling-a-run) run save their state and end"
    ),
    (Reason.SUSPENDING,): (
        "the pod of a suspended run, or of one that reached its [time "
        "limit](failures.md#time-limit-of-a-run), saves its state and ends"
    ),
    (Reason.STORING_BASE_MODEL,): (
        "a Job puts the base model of an [endpoint without models](endpoints.md#a-base-model-alone) into the "
        "store, before its pods start"
    ),
    (Reason.MERGING,): (
        "a Job [merges](serving.md#merged-adapters) the adapter of a new revision into its base model, "
        "before its pods start"
    ),
    (Reason.FILLING_MODEL_CACHE,): (
        "a Job copies the model of a new revision into the [model cache](serving.md#model-cache), before its "
        "pods start"
    ),
    (Reason.CLEANING_UP,): (
        "a record is being deleted: a pod removes [its content](ownership.md) from the store"
    ),
}
"""Reasons of `Reconciling` while the operator or the cluster works: what happens."""

WAITING: Final[Meanings] = {
    (Reason.PROFILE_NOT_FOUND, Reason.PROFILE_NOT_ALLOWED, Reason.PROFILE_INVALID): (
        "a ComputeProfile of that name that allows the namespace, whose trainer image has a [contract "
        "version](images.md#versions-of-operator-and-trainer) of the operator, and that uses only "
        "implemented features"
    ),
    (Reason.CUSTOM_CODE_NOT_ALLOWED,): (
        "`allow.customCode: true` in the ComputeProfile of the evaluation, because the run or Evaluation has "
        "[custom metrics](judges.md#custom-metrics)"
    ),
    (Reason.UNKNOWN_VALUES,): "an operator that knows the value: the object was written for a newer release",
    (Reason.NAMESPACE_TOO_LARGE,): (
        "memory of the operator: it keeps at most 192 MiB of objects per namespace "
        "([bounds](tenants.md#memory))"
    ),
    (Reason.DEFAULT_PROFILE_CONFLICT,): "a single default profile: several are marked as default",
    (Reason.TOO_MANY_NODES,): "fewer pods (`compute.nodes`): `limits.nodes` of the profile is lower",
    (Reason.TOO_MANY_DEVICES,): "fewer devices: the profile allows fewer per pod",
    (Reason.STORE_MISSING, Reason.STORE_NOT_FOUND, Reason.STORE_NOT_SHAREABLE): (
        "a store; its claim; a claim that pods on several nodes can mount"
    ),
    (Reason.BASE_MODEL_NOT_STORED,): (
        "a [base model](endpoints.md#a-base-model-alone) that can be read, and valid credentials for it; the "
        "message states why the Job failed, and the operator retries every 5 minutes"
    ),
    (Reason.MERGE_FAILED,): (
        "an adapter that can be [merged](serving.md#merged-adapters), and memory for it; the message states "
        "why the Job failed, and the operator retries every 5 minutes"
    ),
    (Reason.MODEL_CACHE_NOT_FOUND, Reason.MODEL_CACHE_NOT_SHAREABLE, Reason.MODEL_CACHE_NOT_FILLED): (
        "the claim of the [model cache](serving.md#model-cache); a claim that pods on several nodes can "
        "mount; room in it, and a store with the model: the operator retries every 5 minutes"
    ),
    (Reason.SOURCE_NOT_FOUND,): (
        "the claim, ConfigMap or file with the rows; the operator [retries](failures.md#retries)"
    ),
    (FailureReason.INVALID_CREDENTIALS, FailureReason.ACCESS_DENIED): (
        "a [Secret](storage.md#credentials) with what its server requires; the operator "
        "[retries](failures.md#retries)"
    ),
    (FailureReason.SOURCE_UNAVAILABLE,): (
        "the server of the rows or of the base model; the operator [retries](failures.md#retries)"
    ),
    (Reason.SECRET_NOT_FOUND,): "the Secret that the object names",
    (
        Reason.DATASET_NOT_FOUND,
        Reason.DATASET_VERSION_NOT_FOUND,
        Reason.DATASET_FAILED,
        Reason.DATASET_NOT_IN_STORE,
    ): "a Dataset, or a version of it, that is prepared and in the run's store",
    (Reason.CHECKPOINT_NOT_FOUND, Reason.BASE_MODEL_MISMATCH): (
        "a Checkpoint of the endpoint's base model; for a restored run, its own Checkpoint; for a run that "
        "[continues](methods.md#continuing-from-a-checkpoint), the one that it names"
    ),
    (Reason.CHECKPOINT_NOT_IN_STORE, Reason.CHECKPOINT_REJECTED): (
        "a Checkpoint to continue from that is in the run's store and that no one has rejected"
    ),
    (Reason.NAME_CONFLICT,): (
        "a free name: another object has a name that the operator needs. Delete or rename it"
    ),
    (Reason.IN_USE,): (
        "a record is being deleted: the objects that the message names must no longer need its content"
    ),
    (Reason.CLEANUP_FAILED,): (
        "a record is being deleted: the store must allow the removal of its content; the operator retries "
        "every 5 minutes for 24 hours"
    ),
    (Reason.IMAGE_UNAVAILABLE, Reason.UNSCHEDULABLE, Reason.POD_NOT_STARTING): (
        "what the kubelet or the scheduler reports about the pod"
    ),
    (Reason.POD_NOT_ENDING,): (
        "the end of a container that the platform adds and that [outlives the "
        "trainer](failures.md#the-pod-ends-or-is-evicted)"
    ),
    (Reason.NO_REPLICA_READY,): (
        "of `Available=False`: a ready replica of the serving revision; the message states why there is none"
    ),
    (Reason.BELOW_FLOOR, Reason.VERSION_UNKNOWN): (
        "of `ImageCurrent`: a revision with a newer image, or an image whose tag is a version: [set "
        "`spec.restartedAt`](endpoints.md#restarts)"
    ),
    (Reason.OVERRIDDEN,): (
        "of `InSync`: an admission webhook or policy that leaves the endpoint's Deployment unchanged"
    ),
    (Reason.GATEWAY_API_NOT_INSTALLED,): "the Gateway API, which `spec.traffic` of an endpoint needs",
    (Reason.ROUTE_NOT_ACCEPTED,): (
        "a Gateway that accepts the HTTPRoute of the endpoint; the message has the conditions that it "
        "reported"
    ),
    (Reason.FOREIGN_ROUTE_STATUS,): "a single controller that reports on the route for a Gateway: two do",
    (Reason.NODE_LOST,): (
        "[a node that responds](failures.md#lost-nodes), or a statement by an administrator that the node is "
        "gone"
    ),
    (Reason.QUEUE_NOT_FOUND, Reason.KUEUE_NOT_INSTALLED): (
        "the LocalQueue that `kueue.queues` of the ComputeProfile names, or Kueue itself ([Kueue](kueue.md))"
    ),
    (Reason.QUEUE_NOT_ALLOWED, Reason.PRIORITY_NOT_ALLOWED): (
        "`compute.queueName` or `compute.workloadPriorityClass` is not in the list of the ComputeProfile"
    ),
    (Reason.NOT_ADMITTED,): "Kueue cannot admit the Job, whatever quota is free; the message is Kueue's",
    (Reason.PARALLELISM_CHANGED,): "someone changed the number of pods that the train Job runs at a time",
    (Reason.FORBIDDEN, Reason.QUOTA_EXCEEDED): (
        "a permission of the operator, or room in the namespace's quota"
    ),
    (FailureReason.STORE_UNAVAILABLE,): (
        "the [store](storage.md#the-store) could not be read or written; the message states what to check; "
        "the operator [retries](failures.md#retries)"
    ),
}
"""Reasons of `Reconciling` that wait for a user: what is missing."""

SUCCESS: Final[Meanings] = {
    (Reason.SCHEDULED,): "of a FineTuneSchedule: its last run, or what it waits for, is in the message",
    (Reason.SUCCEEDED,): "a stage, a Dataset or a profile is in its desired state",
    (Reason.PROMOTED,): "the run's Checkpoint is the champion",
    (Reason.NOT_PROMOTED,): (
        "the run succeeded, and nothing requested a promotion: no gates, and not `promotion.mode: Always`"
    ),
    (Reason.FIELDS_IGNORED,): (
        "of `FieldsRead`: `status.warnings` explains what each field may mean, and what to do; nothing stops"
    ),
    (Reason.LIST_FULL,): (
        "of `ScoresRecorded`: InferenceDeployments require all scores that the list has place for"
    ),
    (Reason.AWAITING_APPROVAL,): (
        "`promotion.mode: Manual`: a person must set `spec.approval` of the Checkpoint"
    ),
    (Reason.PROMOTION_DISABLED,): (
        "`promotion.mode: Never`: neither gates nor an approval promote the Checkpoint"
    ),
    (Reason.REJECTED,): "a person rejected the Checkpoint, which withdraws its promotion",
    (Reason.RESTORED,): (
        "Checkpoints of this run existed already, so the operator trained nothing ([after a "
        "restore](ownership.md#backup-and-restore))"
    ),
    (Reason.ROUTE_ACCEPTED,): "of `RouteAccepted`: the gateways route to the endpoint",
    (Reason.SERVING,): "an endpoint serves what its spec names",
    (Reason.BAKING,): (
        "an endpoint serves its new revision, and keeps the old one for `strategy.bakeSeconds` "
        "([rollouts](rollouts.md#bake))"
    ),
    (Reason.SCALED_TO_ZERO,): (
        "`spec.replicas` is 0, so a new revision starts with the first replica; the previous revision stays "
        "until then"
    ),
    (Reason.AVAILABLE,): (
        "the content of a DatasetVersion can be read; an endpoint has a ready replica of the serving revision"
    ),
    (Reason.NOT_BELOW_FLOOR,): (
        "the serving image has the version `trainerImage.securityFloor` of the operator's chart, or a newer "
        "one"
    ),
    (Reason.SUSPENDED,): "`spec.suspend` is true and no pod is left",
    (Reason.AWAITING_DECISION,): (
        "a new revision of an endpoint is ready in its preview, pauses in a step without an end, or its "
        "[analysis](rollouts.md#analysis) was inconclusive. A person "
        "[decides](rollouts.md#pause-decide-and-undo)"
    ),
    (Reason.PAUSED,): (
        "`spec.strategy.paused` is true, and a revision of the endpoint waits for the end of the pause"
    ),
}
"""Reasons of `Ready`, `Promoted` and `Available`."""

FAILURE: Final[Meanings] = {
    (FailureReason.INVALID_DATA, FailureReason.NO_TRAINING_ROWS): (
        "rows are invalid (`status.problems` names them), or no row is left to train on"
    ),
    (
        FailureReason.BASE_MODEL_NOT_FOUND,
        FailureReason.BASE_MODEL_INVALID,
        FailureReason.BASE_MODEL_DIGEST_MISMATCH,
    ): "the base model's folder is missing, unusable, or has another digest",
    (Reason.BASE_MODEL_MISMATCH,): (
        "the [champion](methods.md#continuing-from-a-champion) that a run continues from, or an adapter, "
        "was trained from another base model than the one that the message names"
    ),
    (FailureReason.SEQUENCE_TOO_LONG,): "rows are [too long](training.md#long-rows)",
    (FailureReason.SOURCE_TOO_LARGE, FailureReason.ADDRESS_REFUSED): (
        "a source exceeds [the limits](storage.md#addresses-and-limits), or has a forbidden address"
    ),
    (Reason.GATE_FAILED, Reason.EVALUATION_UNDECIDED): (
        "the trained model did not pass its gates; nothing is promoted. Of an Evaluation: a Checkpoint did "
        "not pass [its gates](evaluation.md#result), and no promotion changes"
    ),
    (Reason.CHAMPION_KEEPS_CHANGING,): (
        "the champion changed each time that the run had been compared with it ([gates over "
        "Live](promotion.md#comparison-with-the-champion)); a person can approve the Checkpoint"
    ),
    (Reason.VETOED,): (
        "a check of the trained weights [vetoes](promotion.md#vetoes) the promotion, whatever the gates say. "
        "Of an Evaluation: a check found something in a Checkpoint, and no promotion changes"
    ),
    (Reason.OUT_OF_MEMORY,): (
        "a pod exceeded its memory limit, or [training did not fit](devices.md#out-of-memory); the message "
        "states what to lower"
    ),
    (FailureReason.CUSTOM_METRIC_FAILED,): (
        "a [custom metric](judges.md#custom-metrics) has no usable source, raised an error or exceeded a "
        "limit; the message names the row and the line"
    ),
    (FailureReason.PREDICTED_OUT_OF_MEMORY,): (
        "preflight [predicts](devices.md#prediction) that training cannot fit the devices of the profile; "
        "no device was requested"
    ),
    (FailureReason.WRONG_IMAGE, FailureReason.DEVICE_NOT_FOUND): (
        "a pod that requests accelerators has an image [without CUDA](images.md), or sees no device"
    ),
    (FailureReason.UNSUPPORTED_DEVICE,): (
        "the cards of the ComputeProfile are [older than Ampere](devices.md#facts-about-the-devices)"
    ),
    (Reason.EVICTED, Reason.DEADLINE_EXCEEDED): (
        "the pod exceeded a limit of its own and was evicted, or reached a deadline that a user set"
    ),
    (Reason.MAX_RUN_SECONDS_EXCEEDED,): (
        "the run used devices for its whole time limit; it continues when [the limit is "
        "raised](failures.md#time-limit-of-a-run)"
    ),
    (Reason.CANCELLED,): (
        "the run was [cancelled](failures.md#cancelling-a-run): it never starts again, and its Checkpoints "
        "stay"
    ),
    (FailureReason.LOSS_NOT_FINITE, FailureReason.LOSS_DIVERGED): (
        "training failed: the loss is not a finite number, or is [far above its median](training.md#guards)"
    ),
    (FailureReason.STEP_TIMEOUT,): "[training hung](training.md#step-timeout) in the last attempt",
    (FailureReason.RESTARTED_WITHOUT_PROGRESS,): "three restarts made no new step",
    (FailureReason.ARTIFACT_NOT_FOUND, FailureReason.ARTIFACT_CORRUPT, FailureReason.FINGERPRINT_MISMATCH): (
        "content of the store is missing, damaged, or of another run"
    ),
    (Reason.ROLLOUT_FAILED,): "a new revision cannot start; the previous one keeps serving",
    (Reason.WEIGHT_NOT_ACHIEVABLE,): (
        "`spec.replicas` is too small for a weight of the [canary](rollouts.md#canary); the previous "
        "revision keeps serving"
    ),
    (Reason.ROLLED_BACK,): (
        "a [decision](rollouts.md#pause-decide-and-undo), or a crash in a canary or the "
        "[bake](rollouts.md#bake), returned the requests to the previous revision, which serves"
    ),
    (Reason.UNSUPPORTED_BY_ENGINE,): (
        "the engine of the ComputeProfile does not support a model or a setting; the message names the "
        "field. The previous revision of an endpoint keeps serving ([engines](serving.md#engines))"
    ),
    (Reason.NOT_IMPLEMENTED,): (
        "this release does not implement a field or value; the message states what to use instead. The run "
        "or Dataset starts after an upgrade to a release that implements it; delete it if you do not want "
        "that"
    ),
    (Reason.INVALID_SPEC, FailureReason.INVALID_CONFIG, FailureReason.CONTRACT_MISMATCH): (
        "a value that cannot work, or a trainer image of another release"
    ),
    (Reason.CHECKPOINT_REPLACED,): (
        "of an Evaluation: a Checkpoint was deleted and created again with other weights"
    ),
    (Reason.RUNS_FAIL,): "of a FineTuneSchedule: three runs failed in a row, and no other one starts",
    (Reason.TOO_MANY_FAILED_TRIALS, Reason.NO_FINISHED_TRIAL): (
        "of a FineTuneSweep: more trials failed than it tolerates, or none has finished, so no run with the "
        "best values is made"
    ),
    (Reason.STAGE_FAILED, Reason.RESULT_LOST, FailureReason.INTERNAL): (
        "a pod failed without a specific reason, or its result is lost: see its log"
    ),
}
"""Reasons of `Stalled`."""

EVENTS: Final = (
    EventMeaning(
        (EventReason.STAGE_STARTED, EventReason.STAGE_FAILED),
        "Normal, Warning",
        "FineTuneJob, Dataset, Evaluation",
    ),
    EventMeaning((EventReason.DATASET_VERSION_CREATED,), "Normal", "Dataset, FineTuneJob"),
    EventMeaning(
        (EventReason.DATA_PROBLEMS,),
        "Warning",
        "Dataset, FineTuneJob: the preparation of a new DatasetVersion left rows out or has warnings",
    ),
    EventMeaning(
        (EventReason.REFRESH_FAILED,), "Warning", "Dataset: a re-check of its source failed; once per reason"
    ),
    EventMeaning(
        (EventReason.PREDICTED_TIGHT,),
        "Warning",
        "FineTuneJob: training [may not fit](devices.md#prediction) the memory of its devices",
    ),
    EventMeaning((EventReason.CHECKPOINT_CREATED,), "Normal", "FineTuneJob"),
    EventMeaning(
        (EventReason.PROFILE_ADVICE,),
        "Normal",
        "FineTuneJob: a ComputeProfile with less device memory is [large enough](devices.md#advice) for "
        "the next run",
    ),
    EventMeaning(
        (EventReason.PREFLIGHT_WARNING,),
        "Warning",
        "FineTuneJob: something about the model or the rows that the user should know, although the run "
        "continues",
    ),
    EventMeaning(
        (EventReason.EVALUATION_WARNING,),
        "Warning",
        "FineTuneJob, Evaluation: something about the evaluation that the user should know, such as [few "
        "rows](promotion.md#confidence), although the verdict does not change",
    ),
    EventMeaning(
        (EventReason.EVALUATION_RENEWED,),
        "Normal",
        "FineTuneJob: the champion has changed, and only it is [measured "
        "again](promotion.md#comparison-with-the-champion)",
    ),
    EventMeaning((EventReason.GATE_FAILED, EventReason.VETOED), "Warning", "FineTuneJob, Evaluation"),
    EventMeaning((EventReason.PROMOTED,), "Normal", "Checkpoint"),
    EventMeaning(
        (EventReason.SUSPENDED, EventReason.RESUMED),
        "Normal",
        "FineTuneJob; `Suspended` also Evaluation and InferenceDeployment",
    ),
    EventMeaning(
        (EventReason.CANCELLED, EventReason.CANCEL_IGNORED),
        "Normal",
        "FineTuneJob: it was [cancelled](failures.md#cancelling-a-run); it had ended before",
    ),
    EventMeaning(
        (EventReason.BUDGET_EXHAUSTED,),
        "Normal",
        "FineTuneJob, Evaluation: it waits for the reset of a [budget](profiles.md#budgets)",
    ),
    EventMeaning((EventReason.DEVICES_GIVEN_BACK,), "Normal", "FineTuneJob"),
    EventMeaning((EventReason.RECORDS_DELETED,), "Normal", "FineTuneJob, Dataset"),
    EventMeaning((EventReason.HISTORY_LIMIT_EXCEEDED,), "Normal", "Checkpoint, DatasetVersion"),
    EventMeaning(
        (EventReason.CONTENT_REMOVED, EventReason.CONTENT_KEPT),
        "Normal; Warning after 24 hours",
        "Checkpoint, DatasetVersion",
    ),
    EventMeaning(
        (
            EventReason.ROLLOUT_STARTED,
            EventReason.ROLLOUT_SUCCEEDED,
            EventReason.ROLLOUT_FAILED,
            EventReason.ROLLED_BACK,
            EventReason.ROOM_MADE,
        ),
        "Normal, Normal, Warning, Warning, Normal",
        "InferenceDeployment",
    ),
    EventMeaning((EventReason.DRIFT_CORRECTED,), "Warning", "InferenceDeployment"),
    EventMeaning(
        (EventReason.BLOCKED, EventReason.NOT_IMPLEMENTED), "Warning", "any; once for each new reason"
    ),
)

UNDER_WAY: Final = frozenset((*chain.from_iterable(IN_PROGRESS), Reason.UNSCHEDULABLE))
"""Reasons of `Reconciling` that need no user action: a node may become free, too. With any other reason the
object is blocked."""
