# SPDX-License-Identifier: Apache-2.0
"""An endpoint that gets requests at a fixed rate, none of which is retried, while its revisions change."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, TypeVar

from openai import OpenAI, OpenAIError

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from finetune_operator.api.labels import REVISION, RUN
from tests.e2e import manifests
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, Team, condition_of, name_of
from tests.waiting import eventually
from tools.demo.questions import LoadRequest, SteadyLoad

T = TypeVar("T")

REQUESTS_OF_ROUTED: Final = 6
"""Requests in a row, each on its own connection, that show which pods get all requests."""

NO_STRATEGY: Final = dict.fromkeys(
    ("type", "rollingUpdate", "blueGreen", "canary", "bakeSeconds", "paused", "decision")
)
"""A merge patch that removes every field of a strategy that a test sets."""


@dataclass
class RolloutStep:
    """A time in which the pods or the revisions of the endpoint change.

    Attributes:
        name: what changes.
        began, ended: by the monotonic clock, as all times.
        interrupted, restored: requests may fail between these times.
        revisions: revisions that had pods at the same time, by observation.
    """

    name: str
    began: float = field(default_factory=time.monotonic)
    ended: float = math.inf
    interrupted: float = math.inf
    restored: float = -math.inf
    revisions: list[set[str]] = field(default_factory=list)

    def may_fail(self, request: LoadRequest) -> bool:
        """Whether requests may fail at some time between the request and its end."""
        return self.interrupted <= request.at + request.seconds and request.at <= self.restored


@dataclass
class EndpointUnderLoad:
    """An endpoint whose model `tuned` gets plain and streamed requests.

    Attributes:
        uid: uid of the endpoint.
        client: opens a new connection for each request, so that each can reach another pod.
        load: the requests.
        steps: the steps so far, in order.
    """

    team: Team
    name: str
    uid: str
    client: OpenAI
    load: SteadyLoad
    steps: list[RolloutStep] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[RolloutStep]:
        """Check at the end of the block that no request failed except where the step allows it."""
        step = RolloutStep(name)
        self.steps.append(step)
        yield step
        step.ended = time.monotonic()
        self.eventually(
            "a request that was sent after the step has ended",
            lambda: any(each.at > step.ended for each in self.load.ended),
        )
        assert [each for each in self.failed(step) if not step.may_fail(each)] == []

    def sent(self, step: RolloutStep) -> list[LoadRequest]:
        """Completed requests that were sent during the step."""
        return [each for each in self.load.ended if step.began <= each.at <= step.ended]

    def failed(self, step: RolloutStep) -> list[LoadRequest]:
        return [each for each in self.sent(step) if each.failure]

    def serve(self, strategy: Object, **pins: Object) -> None:
        """Set the weights of each model, and the whole strategy."""
        models = [{"name": name, "pin": pin} for name, pin in pins.items()]
        whole = NO_STRATEGY | {"type": "RollingUpdate"} | strategy
        self.patch(models=models, strategy=whole)

    def patch(self, **spec: object) -> None:
        self.team.patch("inferencedeployment", self.name, spec)

    def decide(self, verdict: str, generation: int = 1) -> None:
        """Decide about the newest revision."""
        revision = self.revisions()[0]["name"]
        decision = {"revision": revision, "verdict": verdict, "generation": generation, "reason": "by hand"}
        self.patch(strategy={"decision": decision})

    def status(self) -> Object:
        status: Object = self.team.get("InferenceDeployment", self.name)["status"]
        return status

    def serving(self) -> str:
        """The revision that serves."""
        name: str = self.status()["revision"]
        return name

    def revisions(self) -> list[Object]:
        """The revisions in the status, newest first."""
        listed: list[Object] = self.status()["revisions"]
        return listed

    def state_of(self, revision: str) -> str:
        (state,) = (each["state"] for each in self.revisions() if each["name"] == revision)
        return str(state)

    def deployments(self) -> dict[str, Object]:
        return {name_of(each): each for each in self.team.children("deployments", self.uid)}

    def pods(self, revision: str) -> list[Object]:
        """Pods of the revision that are not terminating."""
        found = self.team.access.pods(self.team.namespace, f"{REVISION}={revision}")
        return [each for each in found if "deletionTimestamp" not in each["metadata"]]

    def revisions_with_pods(self) -> set[str]:
        """Revisions with pods that have not ended."""
        found = self.team.access.pods(self.team.namespace, f"{RUN}={self.uid}")
        running = [each for each in found if each["status"]["phase"] in ("Pending", "Running")]
        return {each["metadata"]["labels"][REVISION] for each in running}

    def budget(self) -> Object:
        """Status of the PodDisruptionBudget."""
        (budget,) = self.team.children("poddisruptionbudgets", self.uid)
        status: Object = budget["status"]
        return status

    def answer(self, service: str = "", model: str = "tuned") -> str:
        """Answer behind a Service, by default that of the endpoint; empty if the request fails."""
        try:
            if not service:
                return ask(self.client, model, manifests.PROMPTS[0])
            with (
                open_endpoint(self.team.access, service, self.team.namespace) as endpoint,
                endpoint.client() as client,
            ):
                return ask(client, model, manifests.PROMPTS[0])
        except OpenAIError:
            return ""

    def until(self, type_: str, reason: str) -> str:
        """Wait until the condition is True for the present spec; returns its message.

        Raises:
            AssertionError: this did not happen in time, or the endpoint is stalled.
        """

        def message() -> str | None:
            self.steps[-1].revisions.append(self.revisions_with_pods())
            endpoint = self.team.get("InferenceDeployment", self.name)
            if endpoint["status"].get("observedGeneration") != endpoint["metadata"]["generation"]:
                return None
            condition = condition_of(endpoint, type_)
            if condition.get("status") == "True" and condition["reason"] == reason:
                return str(condition["message"])
            assert type_ == "Stalled" or not condition_of(endpoint, "Stalled"), self.describe()
            return None

        return self.eventually(f"{self.name} is {type_} with reason {reason}", message)

    def until_answered(self, answer: str, service: str = "") -> None:
        """Wait until the model behind a Service gives this answer."""
        self.eventually(f"{service or self.name} answers {answer}", lambda: self.answer(service) == answer)

    def until_routed(self, **answers: str) -> None:
        """Wait until nodes route the requests to pods whose models give these answers.

        Each condition of the endpoint can precede its nodes by a moment. An empty answer means that the
        request fails.
        """

        def is_routed() -> bool:
            given = {(name, self.answer(model=name)) for _ in range(REQUESTS_OF_ROUTED) for name in answers}
            return given == set(answers.items())

        self.eventually(f"all requests are answered {answers}", is_routed)

    def until_only(self, revision: str) -> None:
        """Wait until only this revision has a Deployment, and the endpoint has no preview."""

        def is_alone() -> bool:
            services = {name_of(each) for each in self.team.children("services", self.uid)}
            return (set(self.deployments()), services) == ({revision}, {self.name})

        self.eventually(f"only {revision} and the endpoint's own Service are left", is_alone)

    def until_ready(self, revision: str, pods: int, other_than: tuple[str, ...] = ()) -> None:
        """Wait until the revision has this many pods, all ready and none of the named ones."""

        def is_ready() -> bool:
            found = self.pods(revision)
            ready = [each for each in found if condition_of(each, "Ready").get("status") == "True"]
            return len(found) == len(ready) == pods and not {name_of(each) for each in found} & {*other_than}

        self.eventually(f"{revision} has {pods} ready pods, none of {other_than}", is_ready)

    def eventually(self, what: str, condition: Callable[[], T | None]) -> T:
        return eventually(what, condition, PATIENCE_SECONDS, self.describe, PAUSE_SECONDS)

    def describe(self) -> str:
        spec = self.team.get("InferenceDeployment", self.name)["spec"]
        return f"{json.dumps(spec)}\n{self.team.describe('InferenceDeployment', self.name)}"

    def table(self) -> Iterator[str]:
        """A table with a row for each step."""
        yield "| step | seconds | requests sent | failed | from the first to the last failed one, s |"
        yield "|---|---:|---:|---:|---:|"
        for step in self.steps:
            failed = [each.at for each in self.failed(step)]
            span = max(failed, default=0.0) - min(failed, default=0.0)
            counts = f"{len(self.sent(step))} | {len(failed)} | {span:.1f}"
            yield f"| {step.name} | {step.ended - step.began:.0f} | {counts} |"
