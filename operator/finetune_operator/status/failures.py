# SPDX-License-Identifier: Apache-2.0
"""What to do about each failure: the tables of docs/failures.md, in the order of the page.

Texts are Markdown, with links relative to docs/.
"""

from typing import Final, NamedTuple

from finetune_operator.status.explanations import Meanings, Reasons
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.vocabulary import FailureReason


class Failure(NamedTuple):
    """A way in which an object can be blocked or fail."""

    reasons: Reasons
    state: str
    """Whether the object waits, retries or fails."""
    next_step: str
    """What the user can do."""
    happened: str = ""
    """What happened; empty where the reason alone says so."""
    reported: str = ""
    """How the condition reports the reasons, with {} for each; empty for their list alone."""


POD_DOES_NOT_START: Final = (
    Failure(
        (Reason.IMAGE_UNAVAILABLE,),
        "waits",
        "correct `images.trainer` of the ComputeProfile, or add a [pull "
        "secret](installation.md#2-create-the-namespace-and-pull-secrets)",
        happened="the image does not exist or cannot be pulled (`ErrImagePull`, `ImagePullBackOff`, "
        "`InvalidImageName`, …)",
    ),
    Failure(
        (Reason.UNSCHEDULABLE,),
        "waits",
        "wait, or check `accelerator`, and `resources` in `pods` of the ComputeProfile",
        happened="no node has the requested devices, memory or CPU",
    ),
    Failure(
        (Reason.UNSCHEDULABLE,),
        "waits",
        "check `tolerations`, `nodeSelector` and `affinity` in [`pods`](profiles.md#pods) of the "
        "ComputeProfile",
        happened="the nodes have a taint, or no node has the labels",
    ),
    Failure(
        (Reason.UNSCHEDULABLE,),
        "waits",
        "`kubectl get pvc`",
        happened="a volume claim is not bound, or is bound to a node without capacity",
    ),
    Failure(
        (Reason.QUEUED,),
        "waits",
        "nothing",
        happened="the Job waits in its [Kueue](kueue.md) queue; the message is that of its Workload",
    ),
    Failure(
        (Reason.BUDGET_EXHAUSTED,),
        "waits until the reset or until enough Jobs of the namespace have ended, the oldest run first; pods "
        "that run continue",
        "nothing, or ask the platform team to raise `budget` of the ComputeProfile",
        happened="the namespace has used its [budget](profiles.md#budgets) of the ComputeProfile, or its "
        "other Jobs reserve what is left",
    ),
    Failure(
        (Reason.QUEUE_NOT_FOUND, Reason.KUEUE_NOT_INSTALLED),
        "waits",
        "create the queue or install Kueue; or remove `kueue.queues` from the ComputeProfile",
        happened="the LocalQueue does not exist, or Kueue is not installed",
    ),
    Failure(
        (Reason.QUEUE_NOT_ALLOWED, Reason.PRIORITY_NOT_ALLOWED),
        "waits",
        "name another one, or add it to `kueue` of the ComputeProfile",
        happened="the run names a queue or a priority that the ComputeProfile does not allow",
    ),
    Failure(
        (Reason.NOT_ADMITTED,),
        "waits",
        "correct what the message names",
        happened="Kueue cannot admit the Job whatever quota is free: a queue is stopped or has no "
        "ClusterQueue, or Kueue does not manage the Job",
    ),
    Failure(
        (Reason.PARALLELISM_CHANGED,),
        "waits",
        "remove what changed it, and delete the Job",
        happened="someone changed the `parallelism` of the Job",
    ),
    Failure(
        (Reason.QUEUED,),
        "waits",
        "nothing",
        happened="a scheduling gate holds the pod; this includes endpoint pods",
    ),
    Failure(
        (Reason.SECRET_NOT_FOUND, Reason.POD_NOT_STARTING),
        "waits",
        "create it, or stop what adds it",
        happened="a Secret or ConfigMap that the platform adds to the pod is missing",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "`kubectl describe pod`",
        happened="the container cannot be created (`CreateContainerError`, `RunContainerError`, …)",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits, or fails with the Job",
        "`kubectl logs POD -c CONTAINER`",
        happened="an init container that the platform adds fails",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "`kubectl describe pod`",
        happened="the pod was assigned a node two minutes ago and has not started: a volume does not mount, "
        "or the image is large",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "change what the message names in the ComputeProfile or in the namespace",
        happened="a LimitRange, Pod Security, a missing PriorityClass or an admission policy refuses the "
        "pod; the message quotes the refusal",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "see [quotas and limit ranges](profiles.md#quotas-and-limit-ranges)",
        happened="a ResourceQuota refuses the pod: it requires limits, for example",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "check that it runs; a busy one takes a while",
        happened="kube-controller-manager has not begun to create the Job's pods for 5 minutes",
    ),
    Failure(
        (Reason.QUOTA_EXCEEDED,),
        "waits; Kubernetes tries again at most 10 min after there is room",
        "wait, raise the quota, or delete finished objects",
        happened="the quota has no room for the pod, or for the Job",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "waits",
        "`kubectl describe job`",
        happened="the Job has had no pod for a minute, and no event shows why",
    ),
    Failure(
        (Reason.FORBIDDEN,),
        "waits",
        "the message quotes the API server; `helm upgrade` restores the chart's roles",
        happened="a policy rejects the Job, or the operator lacks a permission",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "retries, then fails",
        "`kubectl describe node`",
        happened="the node rejects the pod (`OutOfcpu`, `UnexpectedAdmissionError`, …)",
    ),
    Failure(
        (Reason.POD_NOT_STARTING,),
        "retries, then fails",
        "correct `images.trainer` of the ComputeProfile",
        happened="the image does not have the command (`StartError`)",
    ),
)

POD_ENDS: Final = (
    Failure(
        (Reason.OUT_OF_MEMORY,),
        "retries, then fails",
        "raise the stage's memory in the ComputeProfile, or lower `batchSize` or `maxSequenceLength`",
        happened="it exceeded its memory limit",
    ),
    Failure(
        (Reason.QUEUED, Reason.EVICTED),
        "a new pod starts; not counted as a failure",
        "if it repeats, raise the requests (`memory`, `ephemeralStorage`) in the ComputeProfile to what the "
        "pod uses",
        happened="its node ran out of memory or disk and evicted it",
        reported="{}; {} for an endpoint",
    ),
    Failure(
        (Reason.EVICTED,),
        "retries, then fails",
        "raise or remove the limit: `resources.ephemeralStorage` for the stage in `pods` of the "
        "ComputeProfile, a LimitRange, or the volume's",
        happened="it exceeded its own limit for the node's disk, or that of a volume, and was evicted",
    ),
    Failure(
        (Reason.QUEUED,),
        "a new pod starts; not counted as a failure",
        "nothing",
        happened="it was preempted by a pod of higher priority or by Kueue, or evicted by a drain or a taint",
    ),
    Failure(
        (Reason.QUEUED,),
        "a new pod starts; not counted as a failure",
        "nothing",
        happened="it received SIGTERM and saved its state (exit code 20)",
    ),
    Failure(
        (Reason.QUEUED,),
        "a new pod starts; not counted as a failure",
        "nothing; see [runs in several pods](#runs-in-several-pods)",
        happened="it lost another pod of its run (exit code 21)",
    ),
    Failure(
        (Reason.NODE_LOST,), "waits", "see [lost nodes](#lost-nodes)", happened="its node does not respond"
    ),
    Failure(
        (),
        "fails at once",
        "follow the message",
        happened="it exits because of its config (exit code 10) or its data (exit code 11)",
        reported="the reason that it reports, see [Data, model and training](#data-model-and-training)",
    ),
    Failure(
        (Reason.STAGE_FAILED,), "retries, then fails", "`kubectl logs`", happened="it exits in another way"
    ),
    Failure(
        (Reason.DEADLINE_EXCEEDED,),
        "retries, then fails; a `train` pod that saved its state is replaced, not counted as a failure",
        "remove what sets it",
        happened="a user or policy set `activeDeadlineSeconds` on the pod",
    ),
    Failure(
        (Reason.DEADLINE_EXCEEDED,),
        "fails",
        "remove what sets it",
        happened="a user or policy set `activeDeadlineSeconds` on the Job",
    ),
    Failure(
        (Reason.POD_NOT_ENDING,),
        "waits",
        "make it a native sidecar (an init container with `restartPolicy: Always`), or have it end with the "
        "trainer; then delete the pod",
        happened="the trainer ended, and a container that the platform adds still runs a minute later",
    ),
    Failure(
        (Reason.COLLECTING, Reason.RESULT_LOST),
        "retries, then fails",
        "check the store",
        happened="it completed and was removed before the operator read its result",
        reported="{}, then {} if the store has no result either",
    ),
    Failure(
        (Reason.NO_REPLICA_READY,),
        "waits; fails if the pods report an error that retries cannot fix",
        "the message repeats what the pods report",
        happened="no replica of the serving revision is ready",
        reported="{} of `Available=False`",
    ),
    Failure(
        (Reason.BELOW_FLOOR, Reason.VERSION_UNKNOWN),
        "keeps serving",
        "set [`spec.restartedAt`](endpoints.md#restarts)",
        happened="an endpoint serves with an image older than the chart's `trainerImage.securityFloor`, or "
        "one whose tag is not a version",
    ),
    Failure(
        (Reason.OVERRIDDEN,),
        "keeps serving",
        "exclude the Deployment from the webhook",
        happened="a webhook changes an endpoint's Deployment, and changes it again after the operator "
        "corrected it",
        reported="{} of `InSync=False`",
    ),
    Failure(
        (Reason.NO_CAPACITY_FOR_SURGE,),
        "waits; the previous revision keeps serving",
        "free the resources that the message names, or [see rollouts](rollouts.md#without-capacity)",
        happened="no node or quota has room for a new revision of an endpoint",
    ),
    Failure(
        (Reason.AWAITING_REPLICAS,),
        "waits; the revision that answers keeps its requests",
        "free the resources that the message names, or [promote the revision that "
        "answers](rollouts.md#canary)",
        happened="requests return to a revision of an endpoint that has no ready pod",
    ),
    Failure(
        (Reason.ROLLED_BACK,),
        "fails; the previous revision serves",
        "edit the spec, promote another Checkpoint, or [promote the "
        "revision](rollouts.md#pause-decide-and-undo)",
        happened="a person aborted a new revision of an endpoint, or its pods crashed or were not ready in "
        "a canary or its bake",
    ),
    Failure(
        (Reason.GATEWAY_API_NOT_INSTALLED,),
        "serves by its Service, without canaries; looks again every 30 to 45 s",
        "install the Gateway API, or remove `spec.traffic`",
        happened="an endpoint has `spec.traffic`, and the cluster has no Gateway API",
        reported="{} of `RouteAccepted=False`",
    ),
    Failure(
        (Reason.ROUTE_NOT_ACCEPTED, Reason.FOREIGN_ROUTE_STATUS),
        "serves within the cluster; looks again every 30 s",
        "change what the [message](endpoints.md#gateway) names at the Gateway or in `spec.traffic`",
        happened="a Gateway does not accept the route of an endpoint, or two controllers report on it",
        reported="{}, {} of `RouteAccepted=False`",
    ),
    Failure(
        (Reason.FORBIDDEN,),
        "keeps all revisions and their Services, which the route may use",
        "set `gatewayAPI.enabled` in the chart until the route is deleted",
        happened="`spec.traffic` was removed, and the operator may not delete the HTTPRoute",
        reported="{} of `RouteAccepted=False`",
    ),
    Failure(
        (Reason.WEIGHT_NOT_ACHIEVABLE,),
        "fails; the previous revision keeps serving",
        "raise `spec.replicas` or the weight, or allow [coarse weights](rollouts.md#canary)",
        happened="a step of a canary needs more replicas than the endpoint has",
    ),
    Failure(
        (Reason.ROLLOUT_FAILED,),
        "fails; the previous revision keeps serving",
        "the message repeats what its pod reports",
        happened="a new revision of an endpoint does not become ready in time",
    ),
)

STAGE_FAILS: Final = (
    Failure(
        (FailureReason.INVALID_DATA, FailureReason.NO_TRAINING_ROWS, FailureReason.SEQUENCE_TOO_LONG),
        "fails",
        "`status.problems` names the rows: correct them, or see `onInvalidRows`",
    ),
    Failure(
        (
            FailureReason.BASE_MODEL_NOT_FOUND,
            FailureReason.BASE_MODEL_INVALID,
            FailureReason.BASE_MODEL_DIGEST_MISMATCH,
            Reason.BASE_MODEL_MISMATCH,
        ),
        "fails; waits if only a claim or a Checkpoint is missing",
        "check `baseModel`; if a [champion](methods.md#continuing-from-a-champion) has another base model "
        "than `uri`, the message has both digests",
    ),
    Failure(
        (
            Reason.SOURCE_NOT_FOUND,
            FailureReason.SOURCE_UNAVAILABLE,
            FailureReason.STORE_UNAVAILABLE,
            FailureReason.ACCESS_DENIED,
            FailureReason.INVALID_CREDENTIALS,
        ),
        "waits, with [retries](#retries)",
        "see [storage.md](storage.md)",
    ),
    Failure(
        (FailureReason.SOURCE_TOO_LARGE, FailureReason.ADDRESS_REFUSED),
        "fails",
        "see [storage.md](storage.md#addresses-and-limits)",
    ),
    Failure(
        (FailureReason.LOSS_NOT_FINITE, FailureReason.LOSS_DIVERGED),
        "fails",
        "lower `learningRate`, and look for rows that differ from the rest; the message names the last good "
        "state ([guards](training.md#guards))",
    ),
    Failure(
        (FailureReason.STEP_TIMEOUT,),
        "retries, then fails",
        "the log has the stacks of all threads: check the GPU and the store, or raise "
        "`compute.stepTimeoutSeconds` ([step timeout](training.md#step-timeout))",
    ),
    Failure(
        (Reason.OUT_OF_MEMORY,),
        "fails, after smaller batches and gradient checkpointing were tried",
        "follow the message, which has the figures ([out of memory](devices.md#out-of-memory))",
        reported="{}, reported by `train`",
    ),
    Failure(
        (Reason.OUT_OF_MEMORY,),
        "fails; smaller batches are tried first",
        "follow the message, which has the figures ([how rows are "
        "measured](evaluation.md#how-rows-are-measured))",
        reported="{}, reported by `evaluate`",
    ),
    Failure(
        (FailureReason.CUSTOM_METRIC_FAILED,),
        "fails",
        "correct the function that the message names, and create a new run or Evaluation; rows and limits "
        "are those of [custom metrics](judges.md#custom-metrics)",
    ),
    Failure(
        (FailureReason.PREDICTED_OUT_OF_MEMORY,),
        "fails before a device is requested",
        "follow the message, which names settings that would fit, or set `compute.onPredictedOutOfMemory: "
        "Warn` ([prediction](devices.md#prediction))",
    ),
    Failure(
        (FailureReason.WRONG_IMAGE,),
        "fails before any work",
        "the pod requests accelerators, and the image has no CUDA: use the image that the message names "
        "([variants](images.md))",
    ),
    Failure(
        (FailureReason.DEVICE_NOT_FOUND,),
        "retries, then fails",
        "the image has CUDA, and no device is visible: check the driver, the device plugin and "
        "`runtimeClassName` of the ComputeProfile",
    ),
    Failure(
        (FailureReason.UNSUPPORTED_DEVICE,),
        "fails, before a device is requested if the profile or the node label names the card",
        "choose a ComputeProfile with [devices that the trainer can use](devices.md#facts-about-the-devices)",
    ),
    Failure(
        (FailureReason.RESTARTED_WITHOUT_PROGRESS,),
        "fails",
        "the log shows what ends the pod before the first step",
    ),
    Failure(
        (
            FailureReason.ARTIFACT_NOT_FOUND,
            FailureReason.ARTIFACT_CORRUPT,
            FailureReason.FINGERPRINT_MISMATCH,
        ),
        "fails",
        "content of the store is missing, damaged or of another run: restore it, or create a new run",
    ),
    Failure(
        (FailureReason.INVALID_CONFIG, FailureReason.CONTRACT_MISMATCH, FailureReason.INTERNAL),
        "fails",
        "use a trainer image and an operator of one release; otherwise report the log",
    ),
    Failure(
        (Reason.GATE_FAILED, Reason.EVALUATION_UNDECIDED),
        "fails; the Checkpoint stays",
        "see [promotion.md](promotion.md)",
    ),
    Failure(
        (Reason.CHECKPOINT_REPLACED,),
        "an Evaluation fails after it has measured the remaining Checkpoints, because one was deleted and "
        "created again with other weights",
        "create a new Evaluation",
    ),
    Failure(
        (Reason.RUNS_FAIL,),
        "a FineTuneSchedule starts no run after three failures in a row; runs that did not pass their gates "
        "do not count",
        "correct what the message says about the last run, then edit the template, or suspend the schedule "
        "and resume it",
    ),
    Failure(
        (Reason.TOO_MANY_FAILED_TRIALS, Reason.NO_FINISHED_TRIAL),
        "a FineTuneSweep fails; its finished trials stay",
        "correct what the message says about the last failed trial, and create a new FineTuneSweep",
    ),
    Failure(
        (Reason.CHAMPION_KEEPS_CHANGING,),
        "fails; the Checkpoint stays",
        "approve the Checkpoint, or create a new FineTuneJob when the model line is quiet",
    ),
    Failure(
        (Reason.VETOED,),
        "fails; the Checkpoint stays",
        "the message states what a check of the trained weights found; see [vetoes](promotion.md#vetoes)",
    ),
)

PREREQUISITE_MISSING: Final[Meanings] = {
    (
        Reason.PROFILE_NOT_FOUND,
        Reason.PROFILE_NOT_ALLOWED,
        Reason.PROFILE_INVALID,
        Reason.CUSTOM_CODE_NOT_ALLOWED,
        Reason.DEFAULT_PROFILE_CONFLICT,
        Reason.TOO_MANY_DEVICES,
        Reason.TOO_MANY_NODES,
    ): ("ask the platform team for a suitable ComputeProfile"),
    (Reason.BUDGET_NOT_COUNTED,): (
        "it ends within seconds; otherwise the log of the operator says why it cannot write the status of "
        "the ComputeProfile (`helm upgrade` restores its rights)"
    ),
    (Reason.NAMESPACE_TOO_LARGE,): (
        "delete what the message names; an administrator can raise `--max-namespace-mebibytes` (`extraArgs`) "
        "and the memory limit of the operator"
    ),
    (Reason.UNKNOWN_VALUES,): "upgrade the operator, or use a value that `kubectl explain` lists",
    (Reason.STORE_MISSING, Reason.STORE_NOT_FOUND, Reason.STORE_NOT_SHAREABLE): (
        "create the claim that the message names, with `ReadWriteMany`"
    ),
    (Reason.BASE_MODEL_NOT_STORED,): "see [a base model alone](endpoints.md#a-base-model-alone)",
    (Reason.MERGE_FAILED,): "see [merged adapters](serving.md#merged-adapters)",
    (Reason.MODEL_CACHE_NOT_FOUND, Reason.MODEL_CACHE_NOT_SHAREABLE, Reason.MODEL_CACHE_NOT_FILLED): (
        "see [model cache](serving.md#model-cache)"
    ),
    (
        Reason.DATASET_NOT_FOUND,
        Reason.DATASET_VERSION_NOT_FOUND,
        Reason.DATASET_FAILED,
        Reason.DATASET_NOT_IN_STORE,
        Reason.WAITING_FOR_DATASET,
    ): ("check the Dataset first; the message states why it failed or what it waits for"),
    (Reason.CHECKPOINT_NOT_FOUND,): "the Checkpoint with that name was deleted or does not exist yet",
    (Reason.CHECKPOINT_NOT_IN_STORE, Reason.CHECKPOINT_REJECTED): (
        "create a new run in the store that the message names, or "
        "[continue](methods.md#continuing-from-a-checkpoint) from another Checkpoint"
    ),
    (Reason.IN_USE, Reason.CLEANUP_FAILED): "see [ownership.md](ownership.md)",
    (Reason.NAME_CONFLICT,): "rename or delete the object that the message names",
    (Reason.INVALID_SPEC, Reason.NOT_IMPLEMENTED): "correct the field that the message names",
    (Reason.UNSUPPORTED_BY_ENGINE,): (
        "correct the field, or use a ComputeProfile with [the other engine](serving.md#engines)"
    ),
}
"""Next steps, by the reasons of objects that wait for what is missing, or that were refused."""
