# SPDX-License-Identifier: Apache-2.0
"""A user with the role `edit` in one namespace uses it against the operator, while another team works.

In each case the attack is repeated until a new run of the other team has passed all its stages, was promoted,
and its endpoint has rolled out the new model. Bounds are counts: the requests of the operator for the
namespaces of the user, its lost Leases, and its memory. A wait ends when nothing of the other team changes.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from finetune_operator.api.labels import (
    ANALYZED,
    MANAGED_BY,
    OPERATOR,
    OWNER_KIND,
    OWNER_NAME,
    PROFILE,
    REVISION,
    RUN,
    STAGE,
)
from finetune_operator.manifests.labels import CREATED_SPEC, DEVICES, RECORDED_RUN
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import StageResult
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, NotFound, Object, path_of
from tests.integration.manifests import condition, is_true
from tests.integration.operators import Operator, Operators
from tests.integration.team import BASE, weights
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.audit import AuditLog
from tools.fakepods import config_of, digest, running, succeeded

CALM: Final = "calm"
"""Namespace of the other team."""
HOSTILE: Final = "hostile"
LOOPS: Final = "hostile-loops"
"""Has the prerequisites of runs. What starts there fails."""
CROWD: Final = "hostile-crowd"
REFUSED: Final = "hostile-refused"
"""A quota of an administrator allows no pods."""
THEIRS: Final = (HOSTILE, LOOPS, CROWD, REFUSED)
EDITOR: Final = "ann"
MAX_NAMESPACE_MEBIBYTES: Final = 8
MAX_GROWTH_MEBIBYTES: Final = 160
"""Memory of the operator that an attack with 42 MB of objects may cost: bound, pages of lists, garbage."""
STILL_SECONDS: Final = 90
"""Time without any change of the other team's objects after which its work has stopped."""
PAUSE_SECONDS: Final = 0.1
HELD: Final = "example.com/held"
NUMBERS: Final = itertools.count()
ODD_CORES: Final = ("1e-3", "1E3", "+1.5", "1Ei", "9223372036854775807", "1000000000000E")
ODD_DEVICES: Final = ("", "9" * 63, "1e3", "0x10")
CONTROLS: Final = "\x1b\x07\x85\u202e"
CLEARING: Final = "\x1b[2J\x1b]0;root\x07\u202e\x85"
"""Clears a terminal, names its window, and reverses the text that follows."""
MISSES: Final = frozenset({httpx.codes.NOT_FOUND, httpx.codes.CONFLICT})
"""Answers to a request for an object that has changed or gone meanwhile."""


class Editor:
    """Requests of the user. The role must allow them all."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.requests = 0

    def send(self, method: str, path: str, body: Object | None = None, **headers: str) -> httpx.Response:
        self.requests += 1
        answer = self._api.request(method, path, body, Impersonate_User=EDITOR, **headers)
        assert answer.is_success or answer.status_code in MISSES, f"{method} {path}: {answer.text}"
        return answer

    def create(self, manifest: Object) -> None:
        self.send("POST", path_of(manifest["kind"], manifest["metadata"]["namespace"]), manifest)

    def apply(self, manifest: Object) -> httpx.Response:
        """Create or overwrite the object."""
        metadata = manifest["metadata"]
        path = path_of(manifest["kind"], metadata["namespace"], metadata["name"])
        query = f"?fieldManager={EDITOR}&force=true"
        return self.send("PATCH", path + query, manifest, Content_Type="application/apply-patch+yaml")

    def patch(self, kind: str, namespace: str, name: str, body: Object) -> httpx.Response:
        path = path_of(kind, namespace, name)
        return self.send("PATCH", path, body, Content_Type="application/merge-patch+json")

    def delete(self, kind: str, namespace: str, name: str) -> httpx.Response:
        return self.send("DELETE", f"{path_of(kind, namespace, name)}?propagationPolicy=Background")


class Scene:
    """The user, and the other team with an endpoint that follows its model."""

    def __init__(self, api: Api, audit: AuditLog, operator: Operator, user: str) -> None:
        self.api = api
        self.editor = Editor(api)
        self.operator = operator
        self._audit = audit
        self._user = user
        self._is_live = False
        """Whether the endpoint has been ready."""

    def withstand(self, attack: Callable[[], object], *, requests: int, per_request: float = 0) -> None:
        """Repeat the attack while the other team trains, promotes and rolls out a model.

        Args:
            attack: one step of it.
            requests: limit of the operator's requests for the namespaces of the user.
            per_request: how much each request of the user raises this limit.
        """
        mark, sent, lost = self._audit.mark(), self.editor.requests, self._lost()
        name = f"run-{next(NUMBERS)}"
        self.api.create(manifests.finetunejob(CALM, name))
        seen, since = self._progress(), time.monotonic()
        while not self._has_arrived(name):
            attack()
            self._assert_answering()
            found, now = self._progress(), time.monotonic()
            if found != seen:
                seen, since = found, now
            assert now - since < STILL_SECONDS, f"the other team's work has stopped: {self._describe(name)}"
            time.sleep(PAUSE_SECONDS)
        self._is_live = True
        assert self._lost() == lost, self.operator.log[-4000:]
        assert self.operator.is_active()
        assert "failed with a bug" not in self.operator.log, self.operator.log[-20000:]
        made = [
            f"{each.verb} {each.resource} {each.name} {each.code}"
            for each in self._audit.since(mark)
            if each.user == self._user and each.namespace in THEIRS and each.verb != "watch"
        ]
        limit = requests + per_request * (self.editor.requests - sent)
        assert len(made) <= limit, made[-100:]

    def _has_arrived(self, name: str) -> bool:
        if not is_true(self.api.get("FineTuneJob", CALM, name), "Ready"):
            return False
        endpoint = self.api.get("InferenceDeployment", CALM, "support") or {}
        models = endpoint.get("status", {}).get("models", [])
        return is_true(endpoint, "Ready") and str(models[0].get("checkpoint")).startswith(f"{name}-")

    def _progress(self) -> object:
        """Changes with each step of the other team's runs and rollouts."""
        return [
            (each["metadata"]["name"], each["metadata"]["resourceVersion"])
            for kind in ("Job", "Deployment", "FineTuneJob", "InferenceDeployment")
            for each in self.api.list(kind, CALM)
        ]

    def _assert_answering(self) -> None:
        """The other team's Service selects a revision with a ready pod."""
        before = self._selected()
        pods = self.api.list("Pod", CALM)
        if not self._is_live or before != self._selected():
            return
        ready = {
            each["metadata"]["labels"].get(REVISION)
            for each in pods
            if is_true(each, "Ready") and "deletionTimestamp" not in each["metadata"]
        }
        assert before in ready, self.operator.log[-4000:]

    def _selected(self) -> str:
        service = self.api.get("Service", CALM, "support") or {"spec": {}}
        selected: str = service["spec"].get("selector", {}).get(REVISION, "")
        return selected

    def _lost(self) -> int:
        """Transitions of the operator's Lease."""
        lease = self.api.get("Lease", CALM, "finetune-operator")
        assert lease is not None
        transitions: int = lease["spec"]["leaseTransitions"]
        return transitions

    def _describe(self, name: str) -> str:
        run, endpoint = (
            self.api.get("FineTuneJob", CALM, name),
            self.api.get("InferenceDeployment", CALM, "support"),
        )
        return f"{run}\n{endpoint}\n{self.operator.log[-4000:]}"


def fails_after_preparation(config: StageConfig) -> StageResult:
    """The result of a pod in LOOPS: whatever is trained there fails at once."""
    result = succeeded(config)
    if result.stage == "prepare":
        return result
    failed: dict[str, Any] = {"outcome": "Failed", "reason": "StageFailed", "message": "no weights"}
    return result.model_copy(update={**failed, result.stage: None})


def of(kind: str, namespace: str, name: str, spec: Object | None = None, **metadata: Any) -> Object:
    versions = {
        "Job": "batch/v1",
        "Deployment": "apps/v1",
        "NetworkPolicy": "networking.k8s.io/v1",
        "Lease": "coordination.k8s.io/v1",
    }
    made = {
        "apiVersion": versions.get(kind, "v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, **metadata},
    }
    return made if spec is None else made | {"spec": spec}


def pod_spec(**resources: str) -> Object:
    container = {"name": "engine", "image": "registry.example/any:1", "resources": {"requests": resources}}
    return {"containers": [container], "restartPolicy": "Never"}


@pytest.fixture(scope="module")
def scene(
    installed: ControlPlane, api: Api, audit: AuditLog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    for namespace in (CALM, *THEIRS):
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}).raise_for_status()
    for namespace in (CALM, LOOPS):
        manifests.prepare_namespace(api, namespace)
    for namespace in THEIRS:
        installed.kubectl.run(
            *("create", "rolebinding", EDITOR, "--clusterrole=edit", f"--user={EDITOR}"),
            f"--namespace={namespace}",
        )
    can = ("auth", "can-i", "create", "finetunejobs.finetune.dev", f"--as={EDITOR}", f"--namespace={HOSTILE}")
    eventually("the cluster's role edit has our kinds", lambda: installed.kubectl.succeeds(*can, "--quiet"))
    budget = {"period": "Month", "deviceHoursPerNamespace": 1000}
    api.patch("ComputeProfile", "", manifests.profile_name(CALM), {"spec": {"cost": {"budget": budget}}})
    operators = Operators(installed, CALM, tmp_path_factory.mktemp("operator"))
    with ExitStack() as stack:
        stack.callback(operators.stop_all)
        stack.enter_context(closing(FakeKubelet(api, CALM)))
        stack.enter_context(closing(FakeKubelet(api, LOOPS, fails_after_preparation)))
        operator = operators.start(
            WATCH_NAMESPACES=",".join((CALM, *THEIRS)),
            MAX_NAMESPACE_MEBIBYTES=str(MAX_NAMESPACE_MEBIBYTES),
        ).wait_active()
        made = Scene(api, audit, operator, operators.user)
        api.create(manifests.dataset(CALM))
        api.create(manifests.inferencedeployment(CALM))
        made.withstand(lambda: None, requests=100)
        yield made


def copied_to(namespace: str, found: Object) -> Object:
    """An object with name, labels, annotations, owner and a finalizer like those of another namespace."""
    kind, metadata = found["kind"], found["metadata"]
    taken = {key: metadata[key] for key in ("labels", "annotations", "ownerReferences") if key in metadata}
    owners = [{**each, "blockOwnerDeletion": False} for each in taken.get("ownerReferences", ())]
    labels = {"app": metadata["name"]}
    services = {"metadata": {"labels": labels}, "spec": pod_spec() | {"restartPolicy": "Always"}}
    spec = {
        "Job": {"suspend": True, "template": {"spec": pod_spec()}},
        "Pod": pod_spec(),
        "Deployment": {"replicas": 0, "selector": {"matchLabels": labels}, "template": services},
        "Service": {"ports": [{"port": 80}]},
    }[kind]
    marks = taken | {"ownerReferences": owners, "finalizers": [HELD]}
    return of(kind, namespace, metadata["name"], spec, **marks)


def report_end(api: Api, pod: Object, message: str, code: int = 11) -> None:
    """What a node reports of the user's pod: its container left this message when it ended."""
    metadata = pod["metadata"]
    ended = {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}
    status = {"name": "engine", "image": "any", "imageID": "", "restartCount": 0, "ready": False}
    containers = [{**status, "state": {"terminated": ended}}]
    phase = "Failed" if code else "Succeeded"
    body = {"status": {"phase": phase, "containerStatuses": containers}}
    api.patch("Pod", metadata["namespace"], metadata["name"], body, "status")


def test_copies_of_another_teams_objects_with_their_owners_are_not_taken_for_them(scene: Scene) -> None:
    """The user knows all names and uids. A finalizer keeps what the garbage collector deletes."""
    api, editor = scene.api, scene.editor
    copied: set[str] = set()

    def copy() -> None:
        for kind in ("Job", "Pod", "Deployment", "Service"):
            for found in api.list(kind, CALM):
                if found["metadata"]["uid"] not in copied:
                    copied.add(found["metadata"]["uid"])
                    made = copied_to(HOSTILE, {**found, "kind": kind})
                    editor.apply(made)
                    if kind == "Pod":
                        failed = StageResult(stage="train", run="any", outcome="Failed", message="forged")
                        report_end(api, made, failed.to_json())
                    editor.delete(kind, HOSTILE, found["metadata"]["name"])

    scene.withstand(copy, requests=50)
    held = [each for kind in ("Job", "Pod", "Deployment", "Service") for each in api.list(kind, HOSTILE)]
    assert len(held) == len(copied) > 10
    assert all("deletionTimestamp" in each["metadata"] for each in held)


def test_2000_objects_and_annotations_of_256_kib_take_a_bounded_memory(scene: Scene) -> None:
    editor, before = scene.editor, memory_mebibytes(scene.operator)
    marks = {MANAGED_BY: OPERATOR, RUN: "any", OWNER_KIND: "InferenceDeployment", OWNER_NAME: "support"}

    def create(number: int) -> None:
        size = 250_000 if number % 50 == 0 else 100
        policy = of(
            "NetworkPolicy",
            CROWD,
            f"crowd-{number}",
            {"podSelector": {}},
            labels=marks,
            annotations={
                CREATED_SPEC: "x" * size,
                "example.com/unread": "y" * (250_000 - size if size > 100 else 100),
            },
        )
        editor.create(policy)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create, range(2000)))
    scene.withstand(lambda: None, requests=100)
    eventually("the namespace is reported", lambda: scene.operator.metric("finetune_large_namespaces") == 1)
    assert memory_mebibytes(scene.operator) - before < MAX_GROWTH_MEBIBYTES


def memory_mebibytes(operator: Operator) -> float:
    """Resident memory of the process."""
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    return float(status.partition("VmRSS:")[2].split()[0]) / 1024


def test_pods_with_odd_quantities_and_marks_do_not_stop_the_accounting_of_a_shared_profile(
    scene: Scene,
) -> None:
    api, editor, profile = scene.api, scene.editor, manifests.profile_name(CALM)
    marks = {MANAGED_BY: OPERATOR, PROFILE: profile, RUN: "any", ANALYZED: "any"}
    odd_marks = [{STAGE: "train"}, {REVISION: "any"}, *({DEVICES: each} for each in ODD_DEVICES)]
    crafted = [
        of("Pod", HOSTILE, f"odd-{number}", pod_spec(cpu=cores), labels=marks | more)
        for number, (cores, more) in enumerate(itertools.product(ODD_CORES, odd_marks))
    ]
    modes: list[Object] = [{}, {"completions": 9, "completionMode": "Indexed"}]
    for number, (mode, devices) in enumerate(itertools.product(modes, ODD_DEVICES)):
        spec = {"suspend": True, "parallelism": 100_000, "template": {"spec": pod_spec()}} | mode
        more = {STAGE: "train", DEVICES: devices, OWNER_KIND: "ComputeProfile"}
        editor.create(of("Job", HOSTILE, f"odd-{number}", spec, labels=marks | more))
    for pod in crafted:
        editor.create(pod)
        api.patch(
            "Pod", HOSTILE, pod["metadata"]["name"], {"status": running(pod | {"status": {}})}, "status"
        )

    def usage(namespace: str) -> Object:
        status: Object = (api.get("ComputeProfile", "", profile) or {}).get("status", {})
        return next((e for e in status.get("budget", {}).get("usage", ()) if e["namespace"] == namespace), {})

    used = usage(CALM).get("deviceSeconds", 0)
    scene.withstand(lambda: None, requests=50)
    eventually(
        "the other team's devices are counted", lambda: usage(CALM).get("deviceSeconds", 0) > used, 120
    )
    for pod in crafted:
        editor.delete("Pod", HOSTILE, pod["metadata"]["name"])


def test_results_that_pods_of_the_user_forge_record_nothing(scene: Scene) -> None:
    api, editor = scene.api, scene.editor
    editor.apply(manifests.dataset(HOSTILE))
    for name in ("artifacts", "tickets"):
        editor.apply(manifests.claim(HOSTILE, name))
    (pod,) = eventually(
        "the pod of its Job",
        lambda: [
            each
            for each in api.list("Pod", HOSTILE)
            if each["metadata"]["name"].startswith("tickets-prepare-")
            and "deletionTimestamp" not in each["metadata"]
        ],
    )
    config = config_of(pod)
    assert isinstance(config, StageConfig)
    right = succeeded(config)
    forged = [
        right.model_copy(update={"nonce": None}).to_json(),
        right.model_copy(update={"nonce": "0" * 32}).to_json(),
        right.model_copy(update={"run": "any"}).to_json(),
        "[" * 4096,
        '{"prepare":' * 300,
        right.to_json().replace("420", "1e999"),
        right.to_json().replace("420", "9" * 2000),
        CLEARING * 100,
    ]
    for number, message in enumerate(forged):
        owners = [{**each, "blockOwnerDeletion": False} for each in pod["metadata"]["ownerReferences"]]
        metadata = {"labels": pod["metadata"]["labels"], "ownerReferences": owners}
        made = of("Pod", HOSTILE, f"forged-{number}", pod_spec(), **metadata)
        editor.create(made)
        report_end(api, made, message, number % 2)
    scene.withstand(lambda: None, requests=100)
    assert api.list("DatasetVersion", HOSTILE) == []
    editor.delete("Dataset", HOSTILE, "tickets")


def test_runs_that_fail_at_once_in_a_loop_cost_requests_in_proportion(scene: Scene) -> None:
    editor = scene.editor
    editor.apply(manifests.dataset(LOOPS))
    failed: list[str] = []

    def start_again() -> list[str]:
        for number in range(4):
            run = scene.api.get("FineTuneJob", LOOPS, f"loop-{number}")
            if run is None:
                editor.apply(manifests.finetunejob(LOOPS, f"loop-{number}"))
            elif is_true(run, "Stalled"):
                failed.append(f"loop-{number}")
                editor.delete("FineTuneJob", LOOPS, f"loop-{number}")
        return failed

    scene.withstand(start_again, requests=100, per_request=20)
    eventually("one has failed", start_again, 60)


def test_endpoints_that_crash_in_a_loop_cost_requests_in_proportion(scene: Scene) -> None:
    api, editor = scene.api, scene.editor
    pinned = {"name": "routing", "pin": {"uri": weights("any"), "digest": digest("any")}}
    for name in ("first", "second"):
        endpoint = manifests.inferencedeployment(LOOPS, name)
        endpoint["spec"] |= {"models": [pinned], "baseModel": {"uri": "pvc://models/tiny", "digest": BASE}}
        editor.apply(endpoint)
    restarts = itertools.count(1)

    def crash() -> None:
        for pod in api.list("Pod", LOOPS):
            if REVISION in pod["metadata"]["labels"] and pod["status"].get("containerStatuses"):
                ended = {
                    "exitCode": 1,
                    "message": CLEARING,
                    "finishedAt": "2199-01-01T00:00:00Z",
                }
                status = {
                    **pod["status"]["containerStatuses"][0],
                    "ready": False,
                    "restartCount": next(restarts),
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {"terminated": ended},
                }
                patch_status(api, pod, {"containerStatuses": [status], "conditions": []})
        for name in ("first", "second"):
            stamp = f"2026-01-01T00:{next(restarts) // 60 % 60:02}:{next(restarts) % 60:02}Z"
            editor.patch("InferenceDeployment", LOOPS, name, {"spec": {"restartedAt": stamp}})

    scene.withstand(crash, requests=100, per_request=40)


def patch_status(api: Api, pod: Object, status: Object) -> None:
    metadata = pod["metadata"]
    try:
        api.patch("Pod", metadata["namespace"], metadata["name"], {"status": status}, "status")
    except NotFound:
        return


def test_children_that_the_user_edits_deletes_and_holds_are_repaired_in_proportion(scene: Scene) -> None:
    """Garbage in all marks of the operator, other selectors, deletions, finalizers that stay."""
    api, editor = scene.api, scene.editor

    def meddle() -> None:
        for kind in ("Job", "Pod", "Deployment", "Service"):
            for found in api.list(kind, LOOPS):
                metadata = found["metadata"]
                if MANAGED_BY not in metadata.get("labels", {}):
                    continue
                name, garbage = metadata["name"], dict.fromkeys(metadata.get("annotations", {}), "{")
                editor.patch(kind, LOOPS, name, {"metadata": {"annotations": garbage, "finalizers": [HELD]}})
                if kind == "Service":
                    editor.patch(kind, LOOPS, name, {"spec": {"selector": {"app": "any"}}})
                else:
                    editor.delete(kind, LOOPS, name)
        for run in api.list("FineTuneJob", LOOPS):
            marks = {RECORDED_RUN: "{", "finetune.dev/nonce": CLEARING}
            editor.patch("FineTuneJob", LOOPS, run["metadata"]["name"], {"metadata": {"annotations": marks}})

    scene.withstand(meddle, requests=200, per_request=20)


def test_events_of_the_user_about_a_refused_pod_are_read_within_bounds(scene: Scene) -> None:
    api, editor = scene.api, scene.editor
    quota = of("ResourceQuota", REFUSED, "none", {"hard": {"pods": "0"}})
    api.create(quota)
    for name in ("artifacts", "tickets"):
        api.create(manifests.claim(REFUSED, name))
    api.create(manifests.dataset(REFUSED))
    (job,) = eventually("its Job", lambda: api.list("Job", REFUSED), 60)
    subject = {"apiVersion": "batch/v1", "kind": "Job", "namespace": REFUSED}
    subject |= {key: job["metadata"][key] for key in ("name", "uid")}

    def write(name: str, message: str) -> None:
        event = of("Event", REFUSED, name) | {
            "involvedObject": subject,
            "reason": "FailedCreate",
            "message": message,
            "type": "Warning",
        }
        editor.create(event)

    write("zzz", f"Error creating: {CLEARING}forged")
    for number in range(50):
        write(f"large-{number}", "x" * 200_000)
    for number in range(900):
        write(f"small-{number}", "x" * 100)
    scene.withstand(lambda: None, requests=100)

    def said() -> str:
        found: str = condition(api.get("Dataset", REFUSED, "tickets"), "Reconciling").get("message", "")
        return found if "forged" in found else ""

    message = eventually("the Dataset quotes it", said, 120, lambda: scene.operator.log[-4000:])
    assert set(message).isdisjoint(CONTROLS)


def test_the_operator_reads_no_secrets_and_configmaps_of_the_user(scene: Scene, audit: AuditLog) -> None:
    """So it is of no effect on it that they are replaced while they are used."""
    for number in range(20):
        for kind in ("Secret", "ConfigMap"):
            made = of(kind, HOSTILE, "tickets", labels={MANAGED_BY: OPERATOR})
            made["data"] = {"rows.jsonl": ("eA==", "eQ==")[number % 2]}
            scene.editor.apply(made)
    read = [
        each
        for each in audit.since(0)
        if each.user == f"operator-{CALM}"
        and each.namespace in THEIRS
        and each.resource in {"secrets", "configmaps", "leases"}
    ]
    assert read == []
