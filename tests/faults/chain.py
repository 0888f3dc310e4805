# SPDX-License-Identifier: Apache-2.0
"""A chain of user actions from rows to an endpoint; each step waits for the result of the previous one."""

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
"""Time between two polls of the API server, which many concurrent chains would otherwise keep busy."""

SILENT: Final = "letters"
"""A Dataset whose pod ends without a message, so that its result is collected; no run waits for it."""

EVALUATION: Final = "last-month"

KEPT: Final = frozenset({"Checkpoint routing-40", "DatasetVersion tickets"})
"""Records with `deletionPolicy: Retain`, which remain after everything is deleted."""
KINDS: Final = (
    "FineTuneJob",
    "Dataset",
    "Evaluation",
    "InferenceDeployment",
    "Checkpoint",
    "DatasetVersion",
)
CHILDREN: Final = ("Job", "Pod", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget")


@dataclass(frozen=True, slots=True)
class Patience:
    """Waits for a step.

    Attributes:
        seconds: maximum wait.
        log: the operator's log for error messages.
    """

    seconds: float
    log: Callable[[], str]

    def until(self, what: str, condition: Callable[[], bool], describe: Callable[[], str] = str) -> None:
        """Wait until `condition` is true.

        Raises:
            AssertionError: it was false after `seconds`; the message contains `what`, `describe` and the log.
        """
        eventually(what, condition, self.seconds, lambda: f"{describe()}\n{self.log()}", PAUSE_SECONDS)


class Chain:
    """From rows to a served Checkpoint, and a second run that is suspended, resumed and replaces it.

    The second run trains in two pods. Meanwhile, an Evaluation measures the first Checkpoint. The second run,
    the Evaluation and the Dataset without a run have `deletionPolicy: Delete`.
    """

    def __init__(self, api: Api, namespace: str, kubelet: FakeKubelet, wait: Patience) -> None:
        self._api = api
        self._namespace = namespace
        self._kubelet = kubelet
        self._wait = wait

    def run(self) -> None:
        """Run the steps until the endpoint serves the second Checkpoint.

        Raises:
            AssertionError: a step did not reach its expected state.
        """
        self._api.create(manifests.dataset(self._namespace))
        self._api.create(manifests.finetunejob(self._namespace, "routing"))
        self._api.create(manifests.inferencedeployment(self._namespace))
        self._until_true("Dataset", "tickets", "Ready")
        self._api.create(_to_be_deleted(manifests.dataset(self._namespace, SILENT)))
        self._until_true("FineTuneJob", "routing", "Ready")
        self._until_served_from("routing")
        self._api.create(self._evaluation())
        self._kubelet.held.add("train")
        self._api.create(self._second_run())
        self._wait.until("the second run is training", self._trains)
        self._suspend(suspended=True)
        self._until_true("FineTuneJob", "routing-v2", "Suspended")
        self._wait.until("the second run has no train Job", lambda: len(self._train_jobs()) == 1)
        self._kubelet.held.clear()
        self._suspend(suspended=False)
        self._until_true("FineTuneJob", "routing-v2", "Ready")
        self._set_approval("Approved")
        self._until_served_from("routing-v2")
        self._wait.until("one revision remains", self._has_one_revision)
        self._until_true("Dataset", SILENT, "Ready")
        self._until_true("Evaluation", EVALUATION, "Ready")

    def clean_up(self) -> None:
        """Delete all applied objects, and wait until they and their children no longer exist.

        With a run only those of its Checkpoints are deleted that are neither promoted nor in use.
        """
        self._api.delete("InferenceDeployment", self._namespace, "support")
        self._wait.until("no Checkpoint is in use", self._no_checkpoint_is_in_use)
        self._set_approval("Rejected")
        self._wait.until("the second run's Checkpoint is rejected", self._is_rejected)
        for kind, name in (
            ("Evaluation", EVALUATION),
            ("FineTuneJob", "routing"),
            ("FineTuneJob", "routing-v2"),
            ("Dataset", "tickets"),
            ("Dataset", SILENT),
        ):
            self._api.delete(kind, self._namespace, name)
        self._wait.until(
            "no child remains", lambda: not any(self._api.list(kind, self._namespace) for kind in CHILDREN)
        )
        self._wait.until(
            "only the kept records remain", lambda: self._remaining() == KEPT, self._describe_remaining
        )

    def _evaluation(self) -> Object:
        (checkpoint,) = self._checkpoints_of("routing")
        rows = {"ref": {"name": "tickets"}}
        measured = manifests.evaluation(self._namespace, EVALUATION, checkpoint, dataset=rows, gates=[])
        return _to_be_deleted(measured)

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

    def _set_approval(self, state: str) -> None:
        """Approve or reject the second run's Checkpoint."""
        approval = {"approval": {"state": state}}
        self._api.patch("Checkpoint", self._namespace, self._second_checkpoint(), {"spec": approval})

    def _second_checkpoint(self) -> str:
        (name,) = self._checkpoints_of("routing-v2")
        return name

    def _checkpoints_of(self, run: str) -> set[str]:
        found = self._api.get("FineTuneJob", self._namespace, run) or {}
        return {each["name"] for each in found["status"].get("checkpoints", ())}

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

    def _remaining(self) -> set[str]:
        """Kind and name of all existing objects of our kinds."""
        return {
            f"{kind} {plain(each['metadata']['name'])}"
            for kind in KINDS
            for each in self._api.list(kind, self._namespace)
        }

    def _describe_remaining(self) -> str:
        return ", ".join(sorted(self._remaining()))


def _to_be_deleted(manifest: Object) -> Object:
    return {**manifest, "spec": {**manifest["spec"], "deletionPolicy": "Delete"}}
