"""What users do in a whole chain, step by step: each waits for what the step before it comes to."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage
from tests.integration.manifests import condition, is_true
from tests.waiting import eventually

PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a step, and what to show of the operator when it takes longer."""

    seconds: float
    log: Callable[[], str]

    def until(self, what: str, condition: Callable[[], bool], describe: Callable[[], str] = str) -> None:
        """Raises AssertionError when `what` is not so in time."""
        eventually(what, condition, self.seconds, lambda: f"{describe()}\n{self.log()}", PAUSE_SECONDS)


class Chain:
    """Rows to a served checkpoint, and a second run that is suspended on the way and takes its place."""

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
        self._until_served_from("routing")
        self._kubelet.held.add("train")
        self._api.create(self._second_run())
        self._wait.until("the second run is seen training", self._trains)
        self._suspend(suspended=True)
        self._wait.until("the second run is suspended", lambda: self._is("Suspended", "routing-v2"))
        self._wait.until("the second run has no train Job", lambda: len(self._train_jobs()) == 1)
        self._kubelet.held.clear()
        self._suspend(suspended=False)
        self._until_served_from("routing-v2")
        self._wait.until("one revision is left", self._has_one_revision)

    def clean_up(self) -> None:
        """Delete all that was applied and all that was made of it, and wait until it is gone."""
        for kind, name in (
            ("InferenceDeployment", "support"),
            ("FineTuneJob", "routing"),
            ("FineTuneJob", "routing-v2"),
            ("Dataset", "tickets"),
        ):
            self._api.delete(kind, self._namespace, name)
        children = ("Job", "Pod", "Deployment", "Service")
        self._wait.until(
            "no child is left", lambda: not any(self._api.list(kind, self._namespace) for kind in children)
        )

    def _second_run(self) -> Object:
        run = manifests.finetunejob(self._namespace, "routing-v2", promotion={"withoutEvaluation": True})
        del run["spec"]["evaluation"]
        return run

    def _trains(self) -> bool:
        found = self._api.get("FineTuneJob", self._namespace, "routing-v2")
        return condition(found, "Reconciling").get("reason") == "Training"

    def _suspend(self, *, suspended: bool) -> None:
        self._api.patch("FineTuneJob", self._namespace, "routing-v2", {"spec": {"suspend": suspended}})

    def _until_served_from(self, run: str) -> None:
        self._wait.until(f"{run} is done", lambda: self._is("Ready", run))
        self._wait.until(f"a checkpoint of {run} is served", lambda: self._serves(run))

    def _is(self, type_: str, run: str) -> bool:
        found = self._api.get("FineTuneJob", self._namespace, run)
        return is_true(found, type_)

    def _serves(self, run: str) -> bool:
        made = self._api.get("FineTuneJob", self._namespace, run) or {}
        names = {each["name"] for each in made["status"].get("checkpoints", ())}
        endpoint = self._api.get("InferenceDeployment", self._namespace, "support") or {}
        served = {each["checkpoint"] for each in endpoint["status"].get("models", ())}
        return is_true(endpoint, "Ready") and bool(served) and served <= names

    def _has_one_revision(self) -> bool:
        pods = [pod["metadata"]["name"] for pod in self._api.list("Pod", self._namespace)]
        serving = [name for name in pods if name.startswith("support-")]
        return len(self._api.list("Deployment", self._namespace)) == len(serving) == 1

    def _train_jobs(self) -> list[Object]:
        return jobs_of_stage(self._api, self._namespace, "train")
