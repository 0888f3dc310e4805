# SPDX-License-Identifier: Apache-2.0
"""Runs in queues of a real Kueue, on a control plane whose pods a fake kubelet runs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import condition
from tests.integration.operators import Operator, Operators
from tests.integration.team import Team
from tests.peers.kueuemanager import EXAMPLES, define_queues, running_kueue
from tests.waiting import eventually
from tools.cluster import ControlPlane
from tools.cluster.layout import ISOLATED

ROOT: Final = Path(__file__).parents[2]
PROFILE: Final = ROOT / "examples" / "profiles" / "kueue.yaml"
NAMESPACE: Final = "team"
OTHERS: Final = "others"
"""Namespace of another team with the same ClusterQueue."""
OUR_KINDS: Final = (
    "Checkpoint",
    "Dataset",
    "DatasetVersion",
    "Evaluation",
    "FineTuneJob",
    "InferenceDeployment",
)
WAIT_SECONDS: Final = 120

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="needs a network of its own: run `python -m tools.peers test`"
)


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with our kinds, Kueue and the queues of the examples."""
    plane = ControlPlane("kueue")
    integrations = {"externalFrameworks": [f"{kind}.v1alpha1.finetune.dev" for kind in OUR_KINDS]}
    with plane:
        plane.kubectl.define(ROOT / "crds")
        for namespace in (NAMESPACE, OTHERS):
            plane.kubectl.run("create", "namespace", namespace)
        with running_kueue(plane, tmp_path_factory.mktemp("kueue"), integrations):
            define_queues(plane, (EXAMPLES / "queues.yaml").read_text())
            yield plane
    plane.purge()


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Iterator[Api]:
    api = Api(control_plane.client("user"))
    manifests.prepare_namespace(api, NAMESPACE)
    api.create(yaml.safe_load(PROFILE.read_text()))
    api.create(manifests.dataset(NAMESPACE))
    yield api
    api.close()


@pytest.fixture(scope="module")
def operator(
    control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    operators = Operators(control_plane, NAMESPACE, tmp_path_factory.mktemp("operator"))
    yield operators.start().wait_active()
    operators.stop_all()


@pytest.fixture
def kubelet(api: Api) -> Iterator[FakeKubelet]:
    """Train pods run until a test releases them."""
    kubelet = FakeKubelet(api, NAMESPACE)
    kubelet.held.add("train")
    yield kubelet
    kubelet.close()


@pytest.fixture
def queue(control_plane: ControlPlane) -> Iterator[None]:
    """The LocalQueue of each team."""
    for namespace in (NAMESPACE, OTHERS):
        create_queue(control_plane, namespace)
    yield
    for namespace in (NAMESPACE, OTHERS):
        control_plane.kubectl.run("delete", "localqueue", "gpus", f"--namespace={namespace}")


def create_queue(plane: ControlPlane, namespace: str = NAMESPACE, name: str = "gpus") -> None:
    """Create the LocalQueue of the example, perhaps with another name."""
    manifest = yaml.safe_load((EXAMPLES / "localqueue.yaml").read_text())
    manifest["metadata"] = {"name": name, "namespace": namespace}
    plane.kubectl.run("create", "--filename=-", text=yaml.safe_dump(manifest))


class Scene:
    """Runs of a team, with what a user sees of them."""

    def __init__(self, api: Api, operator: Operator, kubelet: FakeKubelet) -> None:
        self.api = api
        self.operator = operator
        self.kubelet = kubelet
        self._runs: list[str] = []

    def start(self, name: str, compute: Object, **spec: Any) -> None:
        compute = {"profile": "kueue", **compute}
        self.api.create(manifests.finetunejob(NAMESPACE, name, compute=compute, evaluation=None, **spec))
        self._runs.append(name)

    def run(self, name: str) -> Object:
        found = self.api.get("FineTuneJob", NAMESPACE, name)
        assert found is not None
        return found

    def job(self, run: str) -> Object | None:
        """The train Job of the run."""
        uid = self.run(run)["metadata"]["uid"]
        jobs = jobs_of_stage(self.api, NAMESPACE, "train")
        return next((job for job in jobs if job["metadata"]["ownerReferences"][0]["uid"] == uid), None)

    def pods(self, run: str) -> list[Object]:
        """The train pods of the run that have not ended."""
        job = self.job(run)
        return [
            pod
            for pod in self.api.list("Pod", NAMESPACE)
            if job is not None
            and pod["metadata"].get("ownerReferences", [{}])[0].get("uid") == job["metadata"]["uid"]
            and pod["status"]["phase"] in {"Pending", "Running"}
        ]

    def until_state(self, run: str, reason: str, part: str = "", seconds: float = WAIT_SECONDS) -> str:
        """Wait until `Reconciling` has the reason and a message with the part, and return the message."""

        def reached() -> str | None:
            found = condition(self.run(run), "Reconciling")
            message: str = found.get("message", "")
            return message if found.get("reason") == reason and part in message else None

        return eventually(f"{run} is {reason}", reached, seconds, lambda: self._describe(run))

    def until_ready(self, run: str) -> Object:
        return until_condition(self.api, (NAMESPACE, "FineTuneJob", run), "Ready", self.operator)

    def close(self) -> None:
        while self._runs:
            self.api.delete("FineTuneJob", NAMESPACE, self._runs.pop())
        eventually("all runs are gone", lambda: not self.api.list("FineTuneJob", NAMESPACE), WAIT_SECONDS)
        eventually("all Jobs are gone", lambda: not jobs_of_stage(self.api, NAMESPACE, "train"), WAIT_SECONDS)

    def _describe(self, run: str) -> str:
        return f"{self.run(run)['status']}\n{self.job(run)}\n{self.operator.log[-4000:]}"


@pytest.fixture
def scene(api: Api, operator: Operator, kubelet: FakeKubelet) -> Iterator[Scene]:
    scene = Scene(api, operator, kubelet)
    yield scene
    scene.close()


def test_the_pods_of_a_run_are_admitted_together_and_a_run_that_waits_shows_what_is_lacking(
    scene: Scene, queue: None
) -> None:
    scene.start("first", {"devices": 6, "nodes": 2})
    scene.until_state("first", "Training")
    assert len(scene.pods("first")) == 2

    scene.start("second", {"devices": 3, "nodes": 2})
    lacks = "insufficient unused quota for nvidia.com/gpu in flavor gpu-nodes, 2 more needed"
    message = scene.until_state("second", "Queued", lacks)
    assert message.startswith("the train Job waits in LocalQueue gpus: ")
    assert scene.pods("second") == [], "one of its pods would have room"
    job = scene.job("second")
    assert job is not None
    assert (job["spec"]["suspend"], job["spec"]["parallelism"], job["spec"]["completions"]) == (True, 2, 2)

    scene.kubelet.held.clear()
    scene.until_ready("first")
    run = scene.until_ready("second")
    queued = {stage["name"]: stage["queuedSeconds"] for stage in run["status"]["stages"]}
    assert queued["train"] > 0


def test_runs_that_wait_show_their_positions_and_move_up(
    scene: Scene, queue: None, control_plane: ControlPlane
) -> None:
    scene.start("first", {"devices": 8, "nodes": 2, "workloadPriorityClass": "finetune-urgent"})
    scene.until_state("first", "Training")
    control_plane.kubectl.run("create", "--filename=-", text=yaml.safe_dump(urgent_job()))
    scene.start("modest", {"devices": 8})
    scene.start("pressing", {"devices": 8, "workloadPriorityClass": "finetune-urgent"})
    scene.until_state("pressing", "Queued", "LocalQueue gpus, at position 1 (2 in its ClusterQueue): ")
    scene.until_state("modest", "Queued", "LocalQueue gpus, at position 2 (3 in its ClusterQueue): ")

    scene.kubelet.held.clear()
    scene.until_ready("first")
    scene.until_state("modest", "Queued", "at position 2 (2 in its ClusterQueue): ")
    scene.until_state("pressing", "Queued", "at position 1 (1 in its ClusterQueue): ")
    control_plane.kubectl.run("delete", "job", "urgent", f"--namespace={OTHERS}")
    scene.until_ready("pressing")
    scene.until_ready("modest")


def test_a_preempted_run_shows_why_it_waits_and_trains_on_without_a_failed_attempt(
    scene: Scene, queue: None, control_plane: ControlPlane
) -> None:
    scene.start("modest", {"devices": 8, "nodes": 2})
    scene.until_state("modest", "Training")
    (first, *_) = scene.pods("modest")

    control_plane.kubectl.run("create", "--filename=-", text=yaml.safe_dump(urgent_job()))
    scene.until_state("modest", "Queued", "since it was evicted (Preempted)")
    assert scene.pods("modest") == []
    control_plane.kubectl.run("delete", "job", "urgent", f"--namespace={OTHERS}")
    scene.until_state("modest", "Training")
    (again, *_) = scene.pods("modest")
    assert again["metadata"]["uid"] != first["metadata"]["uid"]
    job = scene.job("modest")
    assert job is not None
    assert not job["status"].get("failed")
    scene.kubelet.held.clear()
    run = scene.until_ready("modest")
    assert "retry" not in run["status"]


def test_a_run_that_is_cancelled_while_it_waits_leaves_the_queue_and_the_next_one_moves_up(
    scene: Scene, queue: None
) -> None:
    scene.start("first", {"devices": 8, "nodes": 2})
    scene.until_state("first", "Training")
    scene.start("given-up", {"devices": 8})
    scene.until_state("given-up", "Queued", "LocalQueue gpus, at position 1 (1 in its ClusterQueue): ")
    scene.start("patient", {"devices": 8})
    scene.until_state("patient", "Queued", "at position 2 (2 in its ClusterQueue): ")

    scene.api.patch("FineTuneJob", NAMESPACE, "given-up", {"spec": {"cancel": True}})
    eventually(
        "it is cancelled",
        lambda: condition(scene.run("given-up"), "Stalled").get("reason") == "Cancelled",
        WAIT_SECONDS,
    )
    assert scene.job("given-up") is None
    scene.until_state("patient", "Queued", "at position 1 (1 in its ClusterQueue): ")
    scene.kubelet.held.clear()
    scene.until_ready("first")
    scene.until_ready("patient")


def urgent_job(devices: int = 16) -> Object:
    """A Job of another team that needs all devices."""
    resources = {"nvidia.com/gpu": str(devices)}
    container = {"name": "work", "image": "registry.example/work:1", "resources": {"limits": resources}}
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "finetune-urgent"}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "urgent", "namespace": OTHERS, "labels": labels},
        "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


def test_a_missing_queue_is_a_condition_and_the_run_starts_when_it_is_created(
    scene: Scene, control_plane: ControlPlane
) -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    profile["metadata"]["name"] = "late"
    profile["spec"]["kueue"] = {"queues": {"train": "late"}}
    scene.api.create(profile)
    scene.start("early", {"profile": "late"})
    message = scene.until_state("early", "QueueNotFound")
    assert message.startswith(
        "LocalQueue late of kueue.queues.train of ComputeProfile late does not exist in"
    )
    assert scene.job("early") is None
    create_queue(control_plane, name="late")
    scene.kubelet.held.clear()
    scene.until_ready("early")


def test_a_stopped_queue_is_a_condition_and_what_frees_resources_does_not_wait_in_it(
    scene: Scene, queue: None, control_plane: ControlPlane
) -> None:
    stop(control_plane, "HoldAndDrain")
    try:
        scene.start("held", {}, deletionPolicy="Delete")
        scene.until_state("held", "NotAdmitted", "ClusterQueue gpus is inactive")
        assert "train" not in scene.kubelet.started
        assert scene.kubelet.started[-1] == "preflight"
        scene.close()
        assert scene.kubelet.started[-1] == "cleanup"
    finally:
        stop(control_plane, "None")


def test_a_default_queue_takes_no_job_whose_owner_is_of_a_kind_that_kueue_knows(
    scene: Scene, queue: None, control_plane: ControlPlane
) -> None:
    create_queue(control_plane, name="default")
    stranger = {**urgent_job(devices=17), "metadata": {"name": "stranger", "namespace": NAMESPACE}}
    try:
        labels = scene.api.create(stranger)["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "default"
        scene.start("known", {})
        (job,) = eventually(
            "preflight starts", lambda: jobs_of_stage(scene.api, NAMESPACE, "preflight"), WAIT_SECONDS
        )
        assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
        assert not job["spec"].get("suspend")
    finally:
        scene.api.delete("Job", NAMESPACE, "stranger")
        control_plane.kubectl.run("delete", "localqueue", "default", f"--namespace={NAMESPACE}")


def stop(plane: ControlPlane, policy: str) -> None:
    patch = f'{{"spec": {{"stopPolicy": "{policy}"}}}}'
    plane.kubectl.run("patch", "clusterqueue", "gpus", "--type=merge", f"--patch={patch}")


def test_a_changed_parallelism_is_shown_and_a_deleted_job_is_made_again_with_all_pods(
    scene: Scene, queue: None
) -> None:
    scene.start("whole", {"nodes": 2})
    scene.until_state("whole", "Training")
    job = scene.job("whole")
    assert job is not None
    scene.api.patch("Job", NAMESPACE, job["metadata"]["name"], {"spec": {"parallelism": 1}})
    message = scene.until_state("whole", "ParallelismChanged")
    assert "has parallelism 1 instead of 2" in message
    scene.api.delete("Job", NAMESPACE, job["metadata"]["name"])
    scene.until_state("whole", "Training")
    assert len(scene.pods("whole")) == 2
    scene.kubelet.held.clear()
    scene.until_ready("whole")


def test_a_run_preempts_another_one_by_the_priority_that_it_chooses(scene: Scene, queue: None) -> None:
    scene.start("modest", {"devices": 8, "nodes": 2})
    scene.until_state("modest", "Training")
    scene.start("urgent", {"devices": 8, "workloadPriorityClass": "finetune-urgent"})
    scene.until_state("urgent", "Training")
    scene.until_state("modest", "Queued", "since it was evicted (Preempted)")
    scene.start("refused", {"queueName": "elsewhere"})
    message = scene.until_state("refused", "QueueNotAllowed")
    assert "ComputeProfile kueue allows gpus" in message
    scene.kubelet.held.clear()
    scene.until_ready("urgent")
    scene.until_ready("modest")


def test_a_replica_of_an_endpoint_that_is_not_admitted_is_missing_capacity(
    scene: Scene, queue: None, api: Api, operator: Operator
) -> None:
    """16 devices: two replicas of 6 serve, and the next revision waits until they leave room."""
    team = Team(api, NAMESPACE, operator)
    for name in ("first", "second"):
        team.record(name)
    endpoint = manifests.inferencedeployment(NAMESPACE)
    pinned: list[Object] = [{"name": "routing", "pin": {"checkpoint": name}} for name in ("first", "second")]
    compute = {"profile": "kueue", "devices": 6}
    api.create(
        endpoint | {"spec": endpoint["spec"] | {"models": pinned[:1], "compute": compute, "replicas": 2}}
    )
    team.until_served(routing="first")
    assert len(queued_pods(api)) == 2

    api.patch("InferenceDeployment", NAMESPACE, "support", {"spec": {"models": pinned[1:]}})
    message = team.until_reason("InferenceDeployment", "support", "Reconciling", "NoCapacityForSurge")
    assert "waits in LocalQueue gpus for admission" in message
    assert team.served() == {"routing": "first"}
    api.patch("InferenceDeployment", NAMESPACE, "support", {"spec": {"compute": {"devices": 1}}})
    team.until_served(routing="second")
    assert manifests.condition(team.endpoint(), "InSync") == {}, (
        "what Kueue adds to the Deployment is no drift"
    )
    api.delete("InferenceDeployment", NAMESPACE, "support")
    eventually("no pod serves", lambda: not queued_pods(api), WAIT_SECONDS)


def queued_pods(api: Api) -> list[Object]:
    """The pods of endpoints."""
    wanted = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "finetune-endpoint"}
    return [pod for pod in api.list("Pod", NAMESPACE) if wanted.items() <= pod["metadata"]["labels"].items()]


def test_an_endpoint_preempts_a_run_and_the_run_continues_when_it_is_deleted(
    scene: Scene, queue: None, api: Api, operator: Operator
) -> None:
    scene.start("modest", {"devices": 8, "nodes": 2})
    scene.until_state("modest", "Training")
    team = Team(api, NAMESPACE, operator)
    endpoint = manifests.inferencedeployment(NAMESPACE)
    models = [{"name": "routing", "pin": {"checkpoint": "first"}}]
    compute = {"profile": "kueue", "devices": 4}
    api.create(endpoint | {"spec": endpoint["spec"] | {"models": models, "compute": compute}})
    team.until_served(routing="first")
    scene.until_state("modest", "Queued", "since it was evicted (Preempted)")
    api.delete("InferenceDeployment", NAMESPACE, "support")
    scene.until_state("modest", "Training")
    scene.kubelet.held.clear()
    scene.until_ready("modest")
