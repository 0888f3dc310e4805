"""Which revisions of an endpoint get its requests: the one place that knows how they are routed.

What the cluster routes is the truth about what serves; the status only repeats it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.engine.resources import DEPLOYMENT, SERVICE
from finetune_operator.manifests.labels import REVISION
from finetune_operator.manifests.serving import build_service
from finetune_operator.plan import Apply, Create, Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot

ALL: Final = 100


class Writes(NamedTuple):
    """What routes requests otherwise."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()


class Traffic(Protocol):
    """Routes the requests of one endpoint to its revisions."""

    def weights(self) -> Mapping[str, int]:
        """Percent of the requests by revision, without zeros; empty while no revision gets any."""

    def route(self, weights: Mapping[str, int]) -> Writes:
        """What gives each revision its percent, out of 100 in all; nothing where it has it.

        Raises:
            ValueError: requests cannot be split so.
        """


@dataclass(frozen=True, slots=True)
class ServiceTraffic:
    """All requests go to the one revision that the Service's selector names."""

    endpoint: InferenceDeployment
    snapshot: Snapshot

    def weights(self) -> Mapping[str, int]:
        """All of one revision.

        Where the Service is gone, or names nothing that exists, it is the revision that served before: what
        serves is not given up because a Service was deleted or edited.
        """
        deployments, serving = self.snapshot.children[DEPLOYMENT], self._selected
        if serving not in deployments and self.endpoint.status.revision in deployments:
            serving = self.endpoint.status.revision
        return {serving: ALL} if serving else {}

    def route(self, weights: Mapping[str, int]) -> Writes:
        if list(weights.values()) != [ALL]:
            raise ValueError(f"a Service routes all requests to one revision, not {dict(weights)}")
        (revision,) = weights
        if self._service is None:
            return Writes(create=(Create(build_service(self.endpoint, {REVISION: revision})),))
        if self._selected == revision:
            return Writes()
        uid = self._service["metadata"]["uid"]
        return Writes(apply=(Apply(build_service(self.endpoint, {REVISION: revision}, uid=uid)),))

    @property
    def _service(self) -> Manifest | None:
        return self.snapshot.children[SERVICE].get(self.endpoint.name)

    @property
    def _selected(self) -> str:
        """The revision that the Service selects, or nothing."""
        if self._service is None:
            return ""
        name: str = self._service["spec"].get("selector", {}).get(REVISION, "")
        return name


def traffic_of(endpoint: InferenceDeployment, snapshot: Snapshot) -> Traffic:
    """What routes the endpoint's requests."""
    return ServiceTraffic(endpoint, snapshot)


def main_revision(weights: Mapping[str, int]) -> str:
    """The revision that gets most of the requests, or nothing."""
    return max(weights, key=lambda name: weights[name], default="")


def pod_selector(weights: Mapping[str, int]) -> str:
    """The label selector, as text, of the pods that answer; empty while none does."""
    if len(weights) > 1:
        return f"{REVISION} in ({','.join(sorted(weights))})"
    return "".join(f"{REVISION}={name}" for name in weights)
