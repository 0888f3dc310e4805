# SPDX-License-Identifier: Apache-2.0
"""What the controller of a Gateway does with an HTTPRoute: it reports that it has taken it."""

import threading
from contextlib import suppress
from typing import Final

from tests.integration.api import Api, Object, Refused

CONTROLLER: Final = "example.com/gateway-controller"


def accept(api: Api, route: Object) -> None:
    """Report that all gateways of the route have accepted it as it is."""
    metadata = route["metadata"]
    conditions = [
        {
            "type": type_,
            "status": "True",
            "reason": type_,
            "message": "",
            "observedGeneration": metadata["generation"],
            "lastTransitionTime": metadata["creationTimestamp"],
        }
        for type_ in ("Accepted", "ResolvedRefs")
    ]
    parents = [
        {"parentRef": reference, "controllerName": CONTROLLER, "conditions": conditions}
        for reference in route["spec"]["parentRefs"]
    ]
    status = {"status": {"parents": parents}}
    api.patch("HTTPRoute", metadata["namespace"], metadata["name"], status, "status")


class Gateway:
    """Accepts the routes of a namespace until it is closed, unless it is paused.

    Attributes:
        is_paused: whether it accepts nothing at present.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self.is_paused = False
        self._api = api
        self._namespace = namespace
        self._taken: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            if self.is_paused:
                continue
            # As every controller does, it tries again: a kind whose definition has just changed answers 429.
            with suppress(Refused):
                self._accept_all()

    def _accept_all(self) -> None:
        for route in self._api.list("HTTPRoute", self._namespace):
            metadata = route["metadata"]
            if self._taken.get(metadata["uid"]) != metadata["generation"]:
                accept(self._api, route)
                self._taken[metadata["uid"]] = metadata["generation"]
