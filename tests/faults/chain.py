"""What users do in a whole chain, step by step: each waits for what the step before it comes to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.fakekubelet import FakeKubelet
from tests.faults.requests import plain
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage
from tests.integration.manifests import condition, is_true
from tests.waiting import eventually

PAUSE_SECONDS: Final = 1.0
"""Between two looks at the API server, whoever looks: so many chains would keep it busy with that."""

SILENT: Final = "letters"
"""A Dataset whose result is collected, because its pod ends without a word; no run waits for it."""

KEPT: Final = frozenset({"Checkpoint routing-40", "DatasetVersion tickets"})
"""What is left when everything is deleted: the records with `deletionPolicy: Retain`."""
KINDS: Final = ("FineTuneJob", "Dataset", "InferenceDeployment", "Checkpoint", "DatasetVersion")
CHILDREN: Final = ("Job", "Pod", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a step, and what to show of the operator when it takes longer."""

    seconds: float
    log: Callable[[], str]

    def until(self, what: str, condition: Callable[[], bool], describe: Callable[[], str] = str) -> None:
        """Raises AssertionError when `what` is not so in time."""
        eventually(what, condition, self.seconds, lambda: f"{describe()}\n{self.log()}", PAUSE_SECONDS)


class Chain:
    """Rows to a served checkpoint, and a second run that is suspended on the way and takes its place.

    The second run trains in two pods. It and the Dataset that nobody uses have `deletionPolicy: Delete`.
    """

    def __init__(self, api: Api, namespace: str, kubelet: FakeKubelet, wait: Patience) -> None:
        self._api = api
        self._namespace = namespace
        self._kubelet = kubelet
        self._wait = wait

    def run(self) -> None:
        """Until the endpoint serves the second checkpoint.

        Raises:
            AssertionError: a step did not come to what it should.
        """
        self._api.create(manifests.dataset(self._namespace))
        self._api.create(manifests.finetunejob(self._namespace, "routing"))
        self._api.create(manifests.inferencedeployment(self._namespace))
        self._until_true("Dataset", "tickets", "Ready")
        self._api.create(_to_be_deleted(manifests.dataset(self._namespace, SILENT)))
        self._until_true("FineTuneJob", "routing", "Ready")
        self._until_served_from("routing")
        self._kubelet.held.add("train")
        self._api.create(self._second_run())
        self._wait.until("the second run is seen training", self._trains)
        self._suspend(suspended=True)
        self._until_true("FineTuneJob", "routing-v2", "Suspended")
        self._wait.until("the second run has no train Job", lambda: len(self._train_jobs()) == 1)
        self._kubelet.held.clear()
        self._suspend(suspended=False)
        self._until_true("FineTuneJob", "routing-v2", "Ready")
        self._judge("Approved")
        self._until_served_from("routing-v2")
        self._wait.until("one revision is left", self._has_one_revision)
        self._until_true("Dataset", SILENT, "Ready")

    def clean_up(self) -> None:
        """Delete all that was applied and all that was made of it, and wait until it is gone.

        A run takes only those Checkpoints along that are not promoted and not in use.
        """
        self._api.delete("InferenceDeployment", self._namespace, "support")
        self._wait.until("no Checkpoint is in use", self._no_checkpoint_is_in_use)
        self._judge("Rejected")
        self._wait.until("the second run's Checkpoint is rejected", self._is_rejected)
        for kind, name in (
            ("FineTuneJob", "routing"),
            ("FineTuneJob", "routing-v2"),
            ("Dataset", "tickets"),
            ("Dataset", SILENT),
        ):
            self._api.delete(kind, self._namespace, name)
        self._wait.until(
            "no child is left", lambda: not any(self._api.list(kind, self._namespace) for kind in CHILDREN)
        )
        self._wait.until("only the kept records are left", lambda: self._left() == KEPT, self._describe_left)

    def _second_run(self) -> Object:
        compute = {"profile": manifests.profile_name(self._namespace), "nodes": 2}
        run = manifests.finetunejob(
            self._namespace, "routing-v2", compute=compute, promotion={"mode": "Manual"}
        )
        del run["spec"]["evaluation"]
        return _to_be_deleted(run)

    def _trains(self) -> bool:
        found = self._api.get("FineTuneJob", self._namespace, "routing-v2")
        return condition(found, "Reconciling").get("reason") == "Training"

    def _suspend(self, *, suspended: bool) -> None:
        self._api.patch("FineTuneJob", self._namespace, "routing-v2", {"spec": {"suspend": suspended}})

    def _judge(self, state: str) -> None:
        """Approve or reject the second run's Checkpoint."""
        approval = {"approval": {"state": state}}
        self._api.patch("Checkpoint", self._namespace, self._second_checkpoint(), {"spec": approval})

    def _second_checkpoint(self) -> str:
        (name,) = self._checkpoints_of("routing-v2")
        return name

    def _checkpoints_of(self, run: str) -> set[str]:
        made = self._api.get("FineTuneJob", self._namespace, run) or {}
        return {each["name"] for each in made["status"].get("checkpoints", ())}

    def _until_true(self, kind: str, name: str, type_: str) -> None:
        self._wait.until(
            f"{kind} {name} is {type_}",
            lambda: is_true(self._api.get(kind, self._namespace, name), type_),
        )

    def _until_served_from(self, run: str) -> None:
        self._wait.until(f"a checkpoint of {run} is served", lambda: self._serves(run))

    def _serves(self, run: str) -> bool:
        endpoint = self._api.get("InferenceDeployment", self._namespace, "support") or {}
        served = {each["checkpoint"] for each in endpoint["status"].get("models", ())}
        return is_true(endpoint, "Ready") and bool(served) and served <= self._checkpoints_of(run)

    def _has_one_revision(self) -> bool:
        pods = [pod["metadata"]["name"] for pod in self._api.list("Pod", self._namespace)]
        serving = [name for name in pods if name.startswith("support-")]
        return len(self._api.list("Deployment", self._namespace)) == len(serving) == 1

    def _train_jobs(self) -> list[Object]:
        return jobs_of_stage(self._api, self._namespace, "train")

    def _no_checkpoint_is_in_use(self) -> bool:
        return not any(
            each["status"].get("inUseBy") for each in self._api.list("Checkpoint", self._namespace)
        )

    def _is_rejected(self) -> bool:
        found = self._api.get("Checkpoint", self._namespace, self._second_checkpoint())
        return condition(found, "Promoted").get("reason") == "Rejected"

    def _left(self) -> set[str]:
        """Kind and name of all objects of ours that there are."""
        return {
            f"{kind} {plain(each['metadata']['name'])}"
            for kind in KINDS
            for each in self._api.list(kind, self._namespace)
        }

    def _describe_left(self) -> str:
        return ", ".join(sorted(self._left()))


def _to_be_deleted(manifest: Object) -> Object:
    return {**manifest, "spec": {**manifest["spec"], "deletionPolicy": "Delete"}}
