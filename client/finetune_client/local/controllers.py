# SPDX-License-Identifier: Apache-2.0
"""The controllers of Jobs and Deployments: they create pods, and judge how the pods ended.

A Job's `podFailurePolicy`, `backoffLimit` and `suspend` mean what they mean in a cluster. A Deployment has
one pod, whatever its number of replicas: a second process would only share the machine with the first.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from finetune_client.local.cluster import Cluster, at, controller_of
from finetune_operator.manifests.jobs import TRAINER_CONTAINER
from finetune_operator.observe.pod_status import condition, has_condition, has_ended
from finetune_operator.plan import Manifest

FIRST_BACKOFF: Final = timedelta(seconds=10)
MAX_BACKOFF: Final = timedelta(minutes=6)
"""Delays before another pod after a failure, as Kubernetes' Job controller has them."""
FINAL: Final = ("Complete", "Failed")


class JobController:
    """Creates the pods of Jobs and ends Jobs."""

    def __init__(self, cluster: Cluster, first_backoff: timedelta = FIRST_BACKOFF) -> None:
        self._cluster = cluster
        self._first_backoff = first_backoff

    def sync(self) -> None:
        """Bring all Jobs up to date."""
        for job in list(self._cluster.of("Job").values()):
            if not is_final(job):
                self._sync(job)

    def next_start(self) -> datetime | None:
        """Time at which the next pod replaces one that failed; None if none is due."""
        waiting = (self._next_start(job) for job in self._cluster.of("Job").values() if not is_final(job))
        return min((start for start in waiting if start is not None), default=None)

    def _sync(self, job: Manifest) -> None:
        name, spec = job["metadata"]["name"], job["spec"]
        pods = pods_of(self._cluster, job)
        active = [pod for pod in pods if not has_ended(pod)]
        failed = [pod for pod in pods if _phase(pod) == "Failed"]
        status = {key: value for key, value in (job.get("status") or {}).items() if key != "conditions"}
        counted = [pod for pod in failed if _action(job, pod) == "Count"]
        status |= {"active": len(active), "failed": len(counted), "succeeded": 0}
        if any(_phase(pod) == "Succeeded" for pod in pods):
            return self._end(name, {**status, "succeeded": 1}, "Complete", "CompletionsReached", "")
        rule = next((pod for pod in failed if _action(job, pod) == "FailJob"), None)
        if rule is not None:
            text = f"Container {TRAINER_CONTAINER} for pod {rule['metadata']['name']} failed with exit code"
            return self._end(name, status, "Failed", "PodFailurePolicy", f"{text} {exit_code(rule)}")
        if len(counted) > spec.get("backoffLimit", 6):
            text = "Job has reached the specified backoff limit"
            return self._end(name, status, "Failed", "BackoffLimitExceeded", text)
        if spec.get("suspend"):
            for pod in active:
                self._terminate(pod)
            status.pop("startTime", None)
            suspended = {"type": "Suspended", "status": "True", "lastTransitionTime": at(self._cluster.now)}
            old = condition(job, "Suspended")
            status["conditions"] = [old if old is not None and old["status"] == "True" else suspended]
            return self._cluster.set_status("Job", name, status)
        status.setdefault("startTime", at(self._cluster.now))
        self._cluster.set_status("Job", name, status)
        start = self._next_start(job)
        if not active and (start is None or start <= self._cluster.now):
            self._create_pod(job, len(pods))
        return None

    def _next_start(self, job: Manifest) -> datetime | None:
        ends = sorted(
            _end_time(pod) for pod in pods_of(self._cluster, job) if has_ended(pod) and _is_counted(job, pod)
        )
        if not ends or job["spec"].get("suspend"):
            return None
        backoff: timedelta = self._first_backoff * 2 ** (len(ends) - 1)
        return ends[-1] + min(backoff, MAX_BACKOFF)

    def _create_pod(self, job: Manifest, number: int) -> None:
        metadata, template = job["metadata"], job["spec"]["template"]
        self._cluster.add(_pod(f"{metadata['name']}-{number}", template, "Job", metadata))

    def _terminate(self, pod: Manifest) -> None:
        """Mark the pod as terminating. The kubelet ends it."""
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = at(self._cluster.now)
            self._cluster.written(("Pod", pod["metadata"]["name"]))

    def _end(self, name: str, status: Manifest, how: str, reason: str, message: str) -> None:
        ended = {
            "type": how,
            "status": "True",
            "reason": reason,
            "message": message,
            "lastTransitionTime": at(self._cluster.now),
        }
        self._cluster.set_status("Job", name, {**status, "active": 0, "conditions": [ended]})


class DeploymentController:
    """Creates the pod of the newest Deployment of each endpoint, and reports readiness.

    Older Deployments get no pod: two engines would need the memory of two.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def sync(self) -> None:
        """Bring all Deployments up to date."""
        newest = {controller_of(each): each["metadata"]["name"] for each in self._oldest_first()}
        for deployment in self._oldest_first():
            name, spec = deployment["metadata"]["name"], deployment["spec"]
            pods = pods_of(self._cluster, deployment)
            wanted = bool(spec.get("replicas", 1)) and newest[controller_of(deployment)] == name
            if wanted and not pods:
                owner = {**deployment["metadata"], "name": f"{name}-{self._cluster.namespace}"}
                self._cluster.add(_pod(f"{name}-0", spec["template"], "ReplicaSet", owner))
            if not wanted:
                for pod in pods:
                    self._cluster.delete("Pod", pod["metadata"]["name"])
            self._report(deployment, pods if wanted else [])

    def _oldest_first(self) -> list[Manifest]:
        return sorted(
            self._cluster.of("Deployment").values(), key=lambda each: each["metadata"]["creationTimestamp"]
        )

    def _report(self, deployment: Manifest, pods: list[Manifest]) -> None:
        replicas = deployment["spec"].get("replicas", 1) if pods else 0
        ready = replicas if any(has_condition(pod, "Ready", "True") for pod in pods) else 0
        deadline = timedelta(seconds=deployment["spec"].get("progressDeadlineSeconds", 600))
        created = min((_created(pod) for pod in pods), default=self._cluster.now)
        overdue = not ready and self._cluster.now - created > deadline
        conditions = [
            {"type": "Available", "status": "True" if ready else "False"},
            {
                "type": "Progressing",
                "status": "False" if overdue else "True",
                "reason": "ProgressDeadlineExceeded" if overdue else "ReplicaSetUpdated",
            },
        ]
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": ready,
            "availableReplicas": ready,
            "conditions": conditions,
        }
        self._cluster.set_status("Deployment", deployment["metadata"]["name"], status)


def pods_of(cluster: Cluster, owner: Manifest) -> list[Manifest]:
    """The pods of a Job or Deployment."""
    uid = owner["metadata"]["uid"]
    return [pod for pod in cluster.of("Pod").values() if controller_of(pod) == uid]


def is_final(job: Manifest) -> bool:
    """Whether the Job has ended."""
    return any(has_condition(job, type_, "True") for type_ in FINAL)


def exit_code(pod: Manifest) -> int | None:
    """Exit code of the container that ended a pod; None while it runs."""
    codes = [ended["exitCode"] for _, ended in _ended_containers(pod) if ended.get("exitCode") is not None]
    return next((code for code in codes if code), codes[-1] if codes else None)


def _pod(name: str, template: Manifest, owner_kind: str, owner: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": dict(template["metadata"].get("labels", {})),
            "annotations": dict(template["metadata"].get("annotations", {})),
            "ownerReferences": [
                {"kind": owner_kind, "name": owner["name"], "uid": owner["uid"], "controller": True}
            ],
        },
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    }


def _phase(pod: Manifest) -> str:
    return str(pod.get("status", {}).get("phase", ""))


def _created(pod: Manifest) -> datetime:
    return datetime.fromisoformat(pod["metadata"]["creationTimestamp"])


def _end_time(pod: Manifest) -> datetime:
    ends = [datetime.fromisoformat(ended["finishedAt"]) for _, ended in _ended_containers(pod)]
    return max(ends, default=_created(pod))


def _ended_containers(pod: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Name and end of each container of the pod that has ended."""
    status = pod.get("status", {})
    for kind in ("initContainerStatuses", "containerStatuses"):
        for each in status.get(kind, ()):
            if (ended := each.get("state", {}).get("terminated")) is not None:
                yield each["name"], ended


def _is_counted(job: Manifest, pod: Manifest) -> bool:
    return _phase(pod) == "Failed" and _action(job, pod) == "Count"


def _action(job: Manifest, pod: Manifest) -> str:
    """What the first matching rule of the Job's `podFailurePolicy` says about a failed pod."""
    for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
        conditions = rule.get("onPodConditions", ())
        codes = rule.get("onExitCodes")
        if any(has_condition(pod, each["type"], each["status"]) for each in conditions):
            return str(rule["action"])
        if codes is not None and any(
            ended.get("exitCode")
            and codes.get("containerName") in (None, name)
            and (ended["exitCode"] in codes["values"]) == (codes["operator"] == "In")
            for name, ended in _ended_containers(pod)
        ):
            return str(rule["action"])
    return "Count"
