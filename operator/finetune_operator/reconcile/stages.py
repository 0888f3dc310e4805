"""One stage: create its Job, follow it, read its result. The same for runs and for Datasets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from finetune_operator.api.retrystatus import RetryStatus
from finetune_operator.manifests.jobs import IGNORED_EXIT_CODES, non_retryable_exit_codes
from finetune_operator.observe import podfailures
from finetune_operator.observe.jobtrouble import job_trouble, look_again
from finetune_operator.observe.peers import called, current, nodes_of
from finetune_operator.observe.pods import Trouble
from finetune_operator.observe.stagetimes import container_state, instant
from finetune_operator.plan import Create, Manifest
from finetune_operator.reconcile import retries
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.results import (
    Expected,
    is_foreign,
    last_word,
    pods_of,
    result_of,
    success,
)
from finetune_operator.reconcile.retries import PASSING, Retry
from finetune_operator.reconcile.stagejobs import (
    RUNNING,
    SETTLING,
    ended_at,
    foreign,
    has_ended,
    is_unfinished,
    left_behind,
    until_ended,
)
from finetune_operator.reconcile.steps import Blocked, Failed, Working
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import Stage


@dataclass(frozen=True, slots=True)
class Probe:
    """A small Job without devices that uses the run's store as the stage would."""

    name: str
    build: Callable[[], Manifest | Blocked | Failed]


@dataclass(frozen=True, slots=True)
class Peers:
    """What pods that work together find and trust each other by."""

    service: Manifest
    policy: Manifest
    """Both there before the Job, and as long as it has pods."""
    key: Callable[[], Manifest]
    """Created with the Job: it cannot be seen whether it is there, and one that is stays as it is."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """A stage that should have a result."""

    stage: Stage
    name: str
    """Of its Job."""
    run: str
    build: Callable[[], Manifest | Blocked | Failed]
    """Makes the Job; called only when there is none."""
    collect_name: str
    build_collect: Callable[[], Manifest | Blocked | Failed]
    contract: int
    """Version of the contract that the stage's Jobs are made in: `contract_of_jobs`."""
    peers: Peers | None = None
    """Of a stage that has several pods."""
    retry: RetryStatus | None = None
    """Failures in a row so far, as the status counts them."""
    probe: Probe | None = None
    """Of a stage that needs devices."""

    @property
    def expected(self) -> Expected:
        """What its result must be of."""
        return Expected(self.run, self.stage, self.contract)


@dataclass(frozen=True, slots=True)
class Broken:
    """Failed for good."""

    reason: str
    message: str
    result: StageResult | None


Outcome = StageResult | Working | Blocked | Failed | Retry | Broken


def advance(draft: Draft, request: StageRequest) -> Outcome:
    """The stage's result, or how far it is; starts its Job when there is none.

    A Job that disappeared before its result was recorded is created again, once its pod has ended: the stage
    then finds its own result in the store, or resumes.
    """
    snapshot = draft.snapshot
    job = snapshot.jobs.get(request.name)
    if job is None:
        left = left_behind(snapshot, request.name)
        if left:
            waits = f"waiting for pod {left[0]['metadata']['name']} of a deleted {request.stage} Job to end"
            return until_ended(left, Reason.QUEUED, waits, snapshot.now)
        return _start(draft, request)
    if is_foreign(job, request.expected, snapshot):
        return foreign(job)
    pods = pods_of(job, snapshot)
    if "deletionTimestamp" in job["metadata"]:
        waits = f"waiting for the previous {request.stage} pod{'s' if nodes_of(job) > 1 else ''} to end"
        return until_ended(pods, Reason.QUEUED, waits, snapshot.now)
    if has_ended(job, "Complete"):
        result = success(pods, job, request.expected)
        return result or _settling(job, "Complete", request, snapshot.now) or _collect(draft, request)
    if has_ended(job, "Failed"):
        return _failed(draft, job, pods, request)
    _name_peers(draft, request)
    return _under_way(job, pods, request, snapshot.now)


def _settling(job: Manifest, how: str, request: StageRequest, now: datetime) -> Working | None:
    left = SETTLING - (now - ended_at(job, how))
    if left <= timedelta():
        return None
    return Working(RUNNING[request.stage], _running(request.stage), left.total_seconds() + 1)


def _start(draft: Draft, request: StageRequest) -> Working | Blocked | Failed:
    job = request.build()
    if isinstance(job, Blocked | Failed):
        return job
    _name_peers(draft, request)
    if request.peers is not None:
        draft.create.append(Create(request.peers.key(), same="Unread"))
    draft.start_job(job)
    draft.event(EventReason.STAGE_STARTED, f"{request.stage} started as Job {request.name}")
    pods = "pods are" if nodes_of(job) > 1 else "pod is"
    return Working(Reason.QUEUED, f"the {request.stage} {pods} being created")


def _name_peers(draft: Draft, request: StageRequest) -> None:
    if request.peers is None:
        return
    wanted = (
        (request.peers.service, draft.snapshot.services),
        (request.peers.policy, draft.snapshot.network_policies),
    )
    draft.create += [Create(each) for each, there in wanted if each["metadata"]["name"] not in there]


def _collect(draft: Draft, request: StageRequest) -> Outcome:
    """The result from the store, by a small Job, because the pod that had it is gone."""
    job = draft.snapshot.jobs.get(request.collect_name)
    reading = f"reading the result of {request.stage} from the store"
    if job is None:
        built = request.build_collect()
        if isinstance(built, Blocked | Failed):
            return built
        draft.start_job(built)
    elif is_foreign(job, request.expected, draft.snapshot):
        return foreign(job)
    elif is_unfinished(job):
        return _collecting(job, pods_of(job, draft.snapshot), reading, draft.snapshot.now)
    else:
        how = "Complete" if has_ended(job, "Complete") else "Failed"
        pods = pods_of(job, draft.snapshot)
        result = success(pods, job, request.expected) or last_word(pods, job, request.expected)
        if result is None:
            settling = _settling(job, how, request, draft.snapshot.now)
            if settling is not None:
                return settling
        elif result.outcome == "Succeeded":
            return result
        elif result.reason in PASSING:
            return _retry(draft, job, result, replace(request, probe=None))
        if result is not None or how == "Failed":
            return _lost(request, result.message if result else "its Job failed too")
        return _unread(draft, job, pods, request)
    return Working(Reason.COLLECTING, reading)


def _lost(request: StageRequest, why: str) -> Broken:
    return Broken(
        Reason.RESULT_LOST,
        f"{request.stage} completed, but its pod is gone and its result could not be read from the store:"
        f" {why}",
        None,
    )


def _unread(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Outcome:
    """A collect Job completed, and what it read did not arrive: try again later, a few times."""
    snapshot = draft.snapshot
    status = retries.counted(request.retry, request.stage, ended_at(job, "Complete"), reading=True)
    messages = (container_state(pod).get("terminated", {}).get("message") for pod in pods)
    said = next((message for message in messages if message), None)
    why = (
        f"the operator cannot read it (it begins {said[:60]!r}): check that the trainer image and the"
        " operator are at most one release apart"
        if said
        else "the pods that read it were removed before the operator saw how they ended: check what deletes"
        " finished pods in this namespace"
    )
    if status.failures >= retries.READ_ATTEMPTS:
        return _lost(request, f"{status.failures} attempts; {why}")
    due = retries.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(job)
    left = max(1.0, (due - snapshot.now).total_seconds())
    message = (
        f"the result of {request.stage} is not read yet: {why} (attempt {status.failures} of"
        f" {retries.READ_ATTEMPTS}; next try at {due:%H:%M:%S} UTC)"
    )
    return Retry(Reason.COLLECTING, message, None, status, Blocked(Reason.COLLECTING, message, left))


def _collecting(job: Manifest, pods: list[Manifest], reading: str, now: datetime) -> Working | Blocked:
    trouble = job_trouble(job, pods, now)
    if trouble is None:
        return Working(Reason.COLLECTING, reading, look_again(pods, now))
    if trouble.reason == Reason.QUEUED:
        return Working(Reason.COLLECTING, f"{reading}: {trouble.message}", trouble.look_again)
    return _waiting(trouble)


def _retry(draft: Draft, job: Manifest, result: StageResult, request: StageRequest) -> Outcome:
    """Wait until another try is due; then the Job that failed makes room for it."""
    snapshot = draft.snapshot
    failed_at = ended_at(job, "Failed" if has_ended(job, "Failed") else "Complete")
    status = retries.counted(request.retry, request.stage, failed_at)
    probe = None if request.probe is None else snapshot.jobs.get(request.probe.name)
    is_old = probe is not None and instant(probe["metadata"]["creationTimestamp"]) < failed_at
    due = retries.due_at(status, request.run)
    retry = retries.waiting(result, status, due, snapshot.now)
    if probe is not None and is_old:
        draft.remove(probe)
    elif probe is not None and is_foreign(probe, request.expected, snapshot):
        return foreign(probe)
    elif probe is not None:
        return _probed(draft, job, probe, retry, request)
    if snapshot.now < due:
        return retry
    if request.probe is None:
        draft.remove(job)
        return retry
    if probe is not None:
        return replace(retry, halt=_checking(request, None))
    built = request.probe.build()
    if isinstance(built, Blocked | Failed):
        return built
    draft.start_job(built)
    return replace(retry, halt=_checking(request, None))


def _checking(request: StageRequest, look_again_in: float | None) -> Working:
    message = f"checking the store without devices before {request.stage} is tried again"
    return Working(Reason.CHECKING_STORE, message, look_again_in)


def _probed(draft: Draft, job: Manifest, probe: Manifest, retry: Retry, request: StageRequest) -> Outcome:
    """What the check of the store found: the stage's result, that it answers, or that it still does not."""
    snapshot, pods = draft.snapshot, pods_of(probe, draft.snapshot)
    if "deletionTimestamp" in probe["metadata"]:
        return replace(retry, halt=_checking(request, None))
    if is_unfinished(probe):
        trouble = job_trouble(probe, pods, snapshot.now)
        if trouble is None or trouble.reason == Reason.QUEUED:
            later = trouble.look_again if trouble is not None else look_again(pods, snapshot.now)
            return replace(retry, halt=_checking(request, later))
        return replace(retry, halt=_waiting(trouble))
    found = success(pods, probe, request.expected) or last_word(pods, probe, request.expected)
    if found is not None and found.outcome == "Succeeded":
        return found
    reads = found is not None and found.reason == FailureReason.ARTIFACT_NOT_FOUND
    if has_ended(probe, "Complete") or reads:
        draft.remove(job)
        draft.remove(probe)
        waits = f"the store answers; waiting for the previous {request.stage} Job to go"
        return replace(retry, halt=Working(Reason.QUEUED, waits))
    failed_at = ended_at(probe, "Failed")
    if found is None:
        settling = _settling(probe, "Failed", request, snapshot.now)
        trouble = podfailures.failure(probe, pods)
        found = StageResult(
            stage=request.stage,
            run=request.run,
            outcome="Failed",
            reason=str(trouble.reason),
            message=trouble.message,
        )
        if settling is not None:
            return replace(retry, halt=_checking(request, settling.requeue_after))
    status = retries.counted(retry.status, request.stage, failed_at)
    due = retries.due_at(status, request.run)
    if snapshot.now >= due:
        draft.remove(probe)
    return retries.waiting(found, status, due, snapshot.now)


def _failed(draft: Draft, job: Manifest, pods: list[Manifest], request: StageRequest) -> Outcome:
    if not pods or any("terminated" not in container_state(pod) for pod in current(pods)):
        settling = _settling(job, "Failed", request, draft.snapshot.now)
        if settling is not None:
            return settling
    result = last_word(pods, job, request.expected)
    if result is None or result.outcome != "Failed":
        trouble = podfailures.failure(job, pods)
        return Broken(trouble.reason, trouble.message, None)
    if result.reason not in PASSING:
        return Broken(result.reason or Reason.STAGE_FAILED, result.message, result)
    return _retry(draft, job, result, request)


def _under_way(
    job: Manifest, pods: list[Manifest], request: StageRequest, now: datetime
) -> Working | Blocked:
    trouble, later = job_trouble(job, pods, now), look_again(pods, now)
    together = current(pods)
    ended = podfailures.decisive([pod for pod in pods if pod in together])
    if ended is not None and (trouble is None or trouble.expected):
        between = _between_pods(job, ended, request)
        if between is not None:
            return replace(between, requeue_after=later)
    if trouble is not None:
        soonest = min((each for each in (trouble.look_again, later) if each is not None), default=None)
        return _waiting(replace(trouble, look_again=soonest))
    return Working(RUNNING[request.stage], _running(request.stage), later)


def _running(stage: Stage) -> str:
    """Also while its end is being counted: that takes a moment and is not worth a status write."""
    return f"{stage} is running"


def _waiting(trouble: Trouble) -> Working | Blocked:
    if trouble.expected:
        return Working(trouble.reason, trouble.message, trouble.look_again)
    return Blocked(trouble.reason, trouble.message, None)


def _between_pods(job: Manifest, pod: Manifest, request: StageRequest) -> Working | None:
    """A pod ended and its Job has not: that is being counted, or another follows; None: it did its part."""
    stage, code = request.stage, container_state(pod).get("terminated", {}).get("exitCode")
    failed, attempts = job.get("status", {}).get("failed", 0), job["spec"]["backoffLimit"] + 1
    if code == ExitCode.OK:
        return None
    if code in non_retryable_exit_codes(stage) or failed >= attempts:
        return Working(RUNNING[stage], _running(stage))
    disruption = podfailures.disruption(pod)
    if code in IGNORED_EXIT_CODES or disruption is not None:
        lost = "ended because it lost another pod of the run" if code == ExitCode.PEER_LOST else None
        how = disruption or lost or f"ended with exit code {code}"
        saved = " with its state saved" if code == ExitCode.PREEMPTED_SAVED else ""
        return Working(Reason.QUEUED, f"{called(stage, pod)} {how}{saved}; the next one follows")
    trouble = result_of(pod, job, request.expected) or podfailures.failure(job, (pod,))
    if nodes_of(job) > 1:
        return Working(
            Reason.QUEUED,
            f"{stage} failed with {trouble.reason} and is tried again (pod failure {max(1, failed)} of"
            f" {attempts}): {trouble.message}",
        )
    return Working(
        Reason.QUEUED,
        f"attempt {max(1, failed)} of {attempts} at {stage} failed with {trouble.reason} and is tried again:"
        f" {trouble.message}",
    )
