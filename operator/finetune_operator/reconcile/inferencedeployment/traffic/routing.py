# SPDX-License-Identifier: Apache-2.0
"""Routing of an endpoint's requests to its revisions. No other module knows how requests are routed.

The objects that route requests decide which revision serves; the status only repeats it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.engine.resources import DEPLOYMENT, SERVICE
from finetune_operator.manifests.endpoint import build_service
from finetune_operator.manifests.labels import REVISION, RUN, WEIGHTS
from finetune_operator.observe.endpoint_health import EndpointHealth
from finetune_operator.plan import Apply, Create, Delete, Manifest
from finetune_operator.reconcile.inputs.snapshot import Snapshot

ALL: Final = 100
"""Percent of the requests of an endpoint."""


class Writes(NamedTuple):
    """Writes that change the routing."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


class Traffic(Protocol):
    """Routes the requests of one endpoint to its revisions."""

    def weights(self) -> Mapping[str, int]:
        """Percent of the requests by revision, without zeros; empty if no revision gets requests."""

    def route(self, weights: Mapping[str, int]) -> Writes:
        """Writes that give each revision its percent of the requests; none if it has it already.

        Raises:
            ValueError: the requests cannot be split in this way.
        """

    def is_settled(self, weights: Mapping[str, int]) -> bool:
        """Whether the requests are routed so, and no other revision can get one any more.

        A pass must not delete a revision before.
        """

    def health(self, weights: Mapping[str, int]) -> EndpointHealth | None:
        """Whether what routes the requests has accepted these weights; None if nothing has to."""


@dataclass(frozen=True, slots=True)
class ServiceTraffic:
    """Routes requests by the selector of the Service.

    The Service selects one revision, or, to split requests, all pods of the endpoint. Then an annotation
    names the revisions and their weights, and their replicas must be in this proportion.
    """

    endpoint: InferenceDeployment
    snapshot: Snapshot

    def weights(self) -> Mapping[str, int]:
        """The weights in the annotation, or all requests for the selected revision.

        If the Service does not exist or selects no existing revision, this is the revision that served
        before, so a deleted or edited Service, or a deleted revision of several, does not stop it.
        """
        deployments, serving = self.snapshot.children[DEPLOYMENT], self._selected
        split = {name: weight for name, weight in self._split.items() if name in deployments}
        if len(split) > 1 and sum(split.values()) == ALL:
            return split
        if serving not in deployments and self.endpoint.status.revision in deployments:
            serving = self.endpoint.status.revision
        return {serving: ALL} if serving else {}

    def route(self, weights: Mapping[str, int]) -> Writes:
        if sum(weights.values()) != ALL:
            raise ValueError(f"the weights of the revisions are not {ALL} together: {dict(weights)}")
        is_split = len(weights) > 1
        if (self._split if is_split else {self._selected: ALL}) == weights:
            return Writes()
        uid = self._service["metadata"]["uid"] if self._service is not None else None
        selector = {} if is_split else {REVISION: next(iter(weights))}
        service = build_service(self.endpoint, selector, uid=uid)
        if is_split:
            service["metadata"]["annotations"] = {WEIGHTS: json.dumps(dict(weights), sort_keys=True)}
        if uid is None:
            return Writes(create=(Create(service),))
        return Writes(apply=(Apply(service),))

    def is_settled(self, weights: Mapping[str, int]) -> bool:  # noqa: ARG002 - of the port
        """A deleted pod answers on until the nodes have observed the change of the Service."""
        return True

    def health(self, weights: Mapping[str, int]) -> None:
        """Nothing has to accept a Service."""

    @property
    def _service(self) -> Manifest | None:
        return self.snapshot.children[SERVICE].get(self.endpoint.name)

    @property
    def _split(self) -> dict[str, int]:
        """The weights in the annotation of a Service that selects all pods of the endpoint, else none."""
        service = self._service or {"metadata": {}, "spec": {}}
        written = (service["metadata"].get("annotations") or {}).get(WEIGHTS)
        if written is None or service["spec"].get("selector") != {RUN: self.endpoint.uid}:
            return {}
        try:
            weights = json.loads(written)
        except ValueError:
            return {}
        return weights if _is_valid(weights) else {}

    @property
    def _selected(self) -> str:
        """The revision that the Service selects; empty if there is none, or if its selector was edited."""
        selector = (self._service or {"spec": {}})["spec"].get("selector", {})
        name: str = selector.get(REVISION, "")
        return name if selector == {RUN: self.endpoint.uid, REVISION: name} else ""


def _is_valid(weights: object) -> bool:
    values = tuple(weights.values()) if isinstance(weights, dict) else ()
    return all(isinstance(each, int) and each >= 0 for each in values) and sum(values) == ALL


def main_revision(weights: Mapping[str, int], recorded: str = "") -> str:
    """The recorded revision if it gets requests, else the one that gets most; empty if there is none."""
    if recorded in weights:
        return recorded
    return max(weights, key=lambda name: weights[name], default="")


def pod_selector(weights: Mapping[str, int]) -> str:
    """Label selector, as text, of the pods that serve; empty if none do."""
    if len(weights) > 1:
        return f"{REVISION} in ({','.join(sorted(weights))})"
    return "".join(f"{REVISION}={name}" for name in weights)
