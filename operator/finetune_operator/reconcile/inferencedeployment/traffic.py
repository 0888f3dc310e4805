"""Routing of an endpoint's requests to its revisions. No other module knows how requests are routed.

The objects that route requests decide which revision serves; the status only repeats it.
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
"""Percent of the requests of an endpoint."""


class Writes(NamedTuple):
    """Writes that change the routing."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()


class Traffic(Protocol):
    """Routes the requests of one endpoint to its revisions."""

    def weights(self) -> Mapping[str, int]:
        """Percent of the requests by revision, without zeros; empty if no revision gets requests."""

    def route(self, weights: Mapping[str, int]) -> Writes:
        """Writes that give each revision its percent of the requests; none if it has it already.

        Raises:
            ValueError: the requests cannot be split in this way.
        """


@dataclass(frozen=True, slots=True)
class ServiceTraffic:
    """Routes all requests to the revision that the Service selects."""

    endpoint: InferenceDeployment
    snapshot: Snapshot

    def weights(self) -> Mapping[str, int]:
        """All requests for one revision.

        If the Service does not exist or selects no existing revision, this is the revision that served
        before, so a deleted or edited Service does not stop it.
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
        """The revision that the Service selects; empty if there is none."""
        if self._service is None:
            return ""
        name: str = self._service["spec"].get("selector", {}).get(REVISION, "")
        return name


def traffic_of(endpoint: InferenceDeployment, snapshot: Snapshot) -> Traffic:
    """The routing of an endpoint."""
    return ServiceTraffic(endpoint, snapshot)


def main_revision(weights: Mapping[str, int]) -> str:
    """The revision that gets most of the requests; empty if there is none."""
    return max(weights, key=lambda name: weights[name], default="")


def pod_selector(weights: Mapping[str, int]) -> str:
    """Label selector, as text, of the pods that serve; empty if none do."""
    if len(weights) > 1:
        return f"{REVISION} in ({','.join(sorted(weights))})"
    return "".join(f"{REVISION}={name}" for name in weights)
