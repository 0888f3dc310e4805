# SPDX-License-Identifier: Apache-2.0
"""A team that applies objects in its namespace and waits for their states."""

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_operator.api.labels import RUN, STAGE
from tests.e2e.manifests import OWN
from tests.waiting import eventually
from tools.demo.install import RELEASE, SYSTEM

PAUSE_SECONDS: Final = 0.5
PATIENCE_SECONDS: Final = 600.0
"""Maximum duration of any wait without progress; a run takes one minute on two idle cores."""


@dataclass(frozen=True)
class Team:
    """A team in one namespace."""

    access: Access
    namespace: str

    def apply(self, *manifests: Object) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=text)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self.access.kubectl(f"--namespace={self.namespace}", *arguments, text=text)

    def get(self, kind: str, name: str) -> Object:
        """One object of our kinds.

        Raises:
            AssertionError: it does not exist.
        """
        found = self.access.object(kind, self.namespace, name)
        assert found is not None, f"{kind} {name} does not exist"
        return found

    def patch(self, kind: str, name: str, spec: Object) -> None:
        self.kubectl("patch", kind, name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def evict(self, pod: Object) -> None:
        """Evict a pod with its own grace period, as a drain of its node does."""
        metadata = {"name": name_of(pod), "namespace": self.namespace}
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name_of(pod)}/eviction"
        self.kubectl("create", f"--raw={path}", "--filename=-", text=json.dumps(eviction))

    def children(self, kind: str, uid: str, stage: str | None = None) -> list[Object]:
        """Objects of a built-in kind with the label of this run or endpoint."""
        selector = f"{RUN}={uid}" + (f",{STAGE}={stage}" if stage else "")
        return cast(
            "list[Object]",
            json.loads(self.kubectl("get", kind, f"--selector={selector}", "--output=json"))["items"],
        )

    def serving(self, endpoint: Object) -> list[tuple[str, object]]:
        """The uid of each pod of an endpoint and its restarts, and of each Deployment and its generation."""
        pods = [
            (uid_of(pod), [each["restartCount"] for each in pod["status"]["containerStatuses"]])
            for pod in self.children("pods", uid_of(endpoint))
        ]
        deployments = self.children("deployments", uid_of(endpoint))
        return sorted(pods + [(uid_of(each), each["metadata"]["generation"]) for each in deployments])

    def until(self, kind: str, name: str, type_: str, reason: str | None = None) -> Object:
        """Wait until the condition is True, with this reason if one is given; returns the object.

        Raises:
            AssertionError: this did not happen in time, or the object is stalled.
        """

        def get() -> Object | None:
            found = self.get(kind, name)
            condition = condition_of(found, type_)
            if condition.get("status") == "True" and reason in (None, condition.get("reason")):
                return found
            stalled = condition_of(found, "Stalled")
            assert type_ == "Stalled" or not stalled, f"{kind} {name} stalled\n{self.describe(kind, name)}"
            return None

        expected = f"{type_} with reason {reason}" if reason else type_
        return eventually(
            f"{kind} {name} is {expected}",
            get,
            PATIENCE_SECONDS,
            describe=lambda: self.describe(kind, name),
            pause=PAUSE_SECONDS,
            progress=lambda: (condition_of(self.get(kind, name), type_), self.phases()),
        )

    def phases(self) -> dict[str, str]:
        """The phase of each pod by uid. They change while the objects of all tests use the machine."""
        return {uid_of(pod): pod["status"].get("phase", "") for pod in self.access.pods(self.namespace, "")}

    def checkpoint_of(self, run: Object) -> Object:
        """The evaluated Checkpoint of a run."""
        return self.get("Checkpoint", run["status"]["evaluation"]["checkpoint"])

    def until_gone(self, kind: str, uid: str) -> None:
        """Wait until no object of a built-in kind has the label of this run or endpoint."""
        eventually(
            f"no {kind} of {uid} remains",
            lambda: not self.children(kind, uid),
            PATIENCE_SECONDS,
            describe=lambda: self.kubectl("describe", kind, f"--selector={RUN}={uid}"),
            pause=PAUSE_SECONDS,
        )

    def pod(self, uid: str, stage: str, other_than: tuple[str, ...] = ()) -> Object:
        """Wait until a pod of the run's stage runs, and return it."""

        def running() -> Object | None:
            pods = self.access.pods(self.namespace, f"{RUN}={uid},{STAGE}={stage}")
            return next((pod for pod in pods if name_of(pod) not in other_than and is_running(pod)), None)

        return eventually(
            f"a {stage} pod runs, other than {other_than}",
            running,
            PATIENCE_SECONDS,
            describe=lambda: self._describe_run(uid),
            pause=PAUSE_SECONDS,
        )

    def until_logged(self, pod: Object, text: str) -> str:
        """Wait for a line with this text in the pod's log, and return it.

        Raises:
            AssertionError: the pod ended without one, or it did not come in time.
        """
        name = name_of(pod)
        command = self.access.kubectl_command(
            "logs", "--follow", f"--namespace={self.namespace}", f"pod/{name}"
        )
        seen = []
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as logs:
            timer = threading.Timer(PATIENCE_SECONDS, logs.terminate)
            timer.start()
            try:
                for line in logs.stdout or ():
                    seen.append(line)
                    if text in line:
                        return line
            finally:
                timer.cancel()
                logs.terminate()
        raise AssertionError(f"pod {name} did not log {text!r}:\n{''.join(seen[-25:])}")

    def log(self, pod: Object) -> str:
        return self.kubectl("logs", f"pod/{name_of(pod)}", "--all-containers")

    def describe(self, kind: str, name: str) -> str:
        """Conditions, status, children, logs and events of an object, for error messages."""
        found = self.access.object(kind, self.namespace, name)
        if found is None:
            return f"{kind} {name} does not exist"
        status = found.get("status", {})
        conditions = "\n".join(
            f"  {each['type']}={each['status']} {each['reason']}: {each.get('message', '')}"
            for each in status.get("conditions", ())
        )
        rest = json.dumps({key: value for key, value in status.items() if key != "conditions"})
        return f"{kind} {name}\n{conditions}\n  {rest}\n{self._describe_run(found['metadata']['uid'])}"

    def _describe_run(self, uid: str) -> str:
        selector = f"--selector={RUN}={uid}"
        objects = self.kubectl("get", "jobs,deployments,services,pods", selector, "--output=wide")
        logs = self.kubectl("logs", selector, "--all-containers", "--prefix", "--tail=25", "--ignore-errors")
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp").splitlines()[-25:]
        operator = self.access.kubectl("logs", f"--namespace={SYSTEM}", f"deployment/{RELEASE}", "--tail=15")
        return "\n".join((objects, logs, *events, operator))


@contextmanager
def new_namespace(access: Access, purpose: str, level: str) -> Iterator[Team]:
    """A namespace with a Pod Security level; deleted at the end of the block."""
    name = f"e2e-{purpose}-{OWN}"
    labels = {"pod-security.kubernetes.io/enforce": level}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    access.kubectl("create", "--filename=-", text=json.dumps(manifest))
    team = Team(access, name)
    try:
        eventually(
            f"the default service account of {name}",
            lambda: team.kubectl("get", "serviceaccounts", "default", "--ignore-not-found"),
            pause=PAUSE_SECONDS,
        )
        yield team
    finally:
        access.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def name_of(obj: Object) -> str:
    name: str = obj["metadata"]["name"]
    return name


def uid_of(obj: Object) -> str:
    uid: str = obj["metadata"]["uid"]
    return uid


def condition_of(obj: Object, type_: str) -> Object:
    """The condition; empty if it does not exist."""
    conditions = obj.get("status", {}).get("conditions", ())
    found: dict[str, Any] = next((each for each in conditions if each["type"] == type_), {})
    return found


def is_running(pod: Object) -> bool:
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return "deletionTimestamp" not in pod["metadata"] and any("running" in each["state"] for each in statuses)


def exit_code(pod: Object) -> int | None:
    """Exit code of the pod's only container; None while it has not ended."""
    statuses = pod.get("status", {}).get("containerStatuses", ())
    return next((each["state"].get("terminated", {}).get("exitCode") for each in statuses), None)
