# SPDX-License-Identifier: Apache-2.0
"""Run chains with disturbances, each in its own namespace with its own operator."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Final, TypeAlias

import yaml

from tests.fakekubelet import FakeKubelet
from tests.faults.chain import PAUSE_SECONDS, SILENT, Chain, Patience
from tests.faults.faults import kills
from tests.faults.proxy import Proxy
from tests.faults.releases import Edit, release
from tests.faults.results import Results
from tests.faults.snapshot import snapshot
from tests.faults.supervised import Supervised
from tests.faults.trials import Trial
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.operators import IMAGE, Operator
from tests.waiting import eventually
from tools.cluster import ControlPlane

QUIET_SECONDS: Final = 2.0
"""Longer than any sequence of reactions to one write."""
ATTEMPTS: Final = 3
"""A pod may end before the operator has seen it running; then the write about it does not happen."""
LOG_CHARACTERS: Final = 4000
NOWHERE: Final = "192.0.2.1"
"""An unreachable address: no pod reports in these chains."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a chain.

    Attributes:
        objects: the final objects, see `snapshot`.
        started: stages whose pods ran, sorted.
        changes: number of times that the operator created and deleted each object.
        writes: identities of all its writes, in order.
        events: identities of the watch events, in the order of their first occurrence.
    """

    objects: str
    started: tuple[str, ...]
    changes: Counter[str]
    writes: tuple[str, ...]
    events: tuple[str, ...]


Verdicts: TypeAlias = Mapping[Trial, Future[None]]
"""Chains that run or have run; a chain with another outcome than expected has an AssertionError."""


class NothingHappened(AssertionError):
    """The write or event to disturb did not occur."""


class Laboratory:
    """Runs any number of chains concurrently on one control plane.

    Args:
        control_plane: a control plane with our CRDs.
        api: access as a user with all rights.
        folder: folder for logs and kubeconfigs.
    """

    def __init__(self, control_plane: ControlPlane, api: Api, folder: Path) -> None:
        self._api = api
        self._user = control_plane.client("operators-behind-proxies")
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._releases: dict[tuple[Edit, ...], Mapping[str, str]] = {}

    def compare(self, trial: Trial, reference: Future[Outcome]) -> None:
        """Run a chain, and compare its outcome with the reference.

        Raises:
            AssertionError: they differ; the message shows the difference.
        """
        outcome = self._run_until_disturbed(trial, reference)
        expected = reference.result()
        assert outcome.started == expected.started, "not the same stages ran"
        assert outcome.changes == expected.changes, "not the same objects were created and deleted"

    def _run_until_disturbed(self, trial: Trial, reference: Future[Outcome]) -> Outcome:
        for _ in range(ATTEMPTS - 1):
            with suppress(NothingHappened):
                return self.run(trial, reference)
        return self.run(trial, reference)

    def run(self, trial: Trial, reference: Future[Outcome] | None = None) -> Outcome:
        """Run a chain until its objects equal those of the reference, if there is one.

        Raises:
            AssertionError: a step or the final state was not reached.
            NothingHappened: the chain ended without the disturbance.
        """
        namespace = f"chain-{next(self._numbers)}"
        kubeconfig = self._folder / f"{namespace}.kubeconfig"
        log = self._folder / f"{namespace}.log"
        self._prepare(namespace)
        settings = {
            "POD_NAMESPACE": namespace,
            "POD_IP": NOWHERE,
            "WATCH_NAMESPACES": namespace,
            "TRAINER_IMAGE": IMAGE,
            "RELIST_SECONDS": str(trial.relist_seconds),
            **self._release(trial.edits),
        }
        operator = Supervised(lambda: Operator("operator-0", kubeconfig, log, settings))
        with ExitStack() as stack:
            kubelet = stack.enter_context(
                closing(FakeKubelet(self._api, namespace, Results(SILENT), PAUSE_SECONDS))
            )
            proxy = stack.enter_context(closing(Proxy(self._user, trial.disturbance, operator.kill)))
            kubeconfig.write_text(_kubeconfig(proxy.url))
            stack.enter_context(closing(operator))
            operator.start()
            wait = Patience(trial.patience_seconds, lambda: operator.log[-LOG_CHARACTERS:])
            chain = Chain(self._api, namespace, kubelet, wait)
            chain.run()
            objects = self._settled(namespace, proxy, reference, wait)
            chain.clean_up()
            wait.until("the operator does not write any more", lambda: _is_idle(proxy))
            if trial.disturbance is not None and not proxy.happened.is_set():
                raise NothingHappened(f"{trial}: this chain has no such write or event")
            restarts = 1 if kills(trial.disturbance) else 0
            assert operator.restarts == restarts, f"{operator.restarts} restarts\n{operator.log}"
            return Outcome(
                objects=objects,
                started=tuple(sorted(kubelet.started)),
                changes=proxy.changes,
                writes=tuple(proxy.writes),
                events=tuple(dict.fromkeys(proxy.events)),
            )

    def _release(self, edits: tuple[Edit, ...]) -> Mapping[str, str]:
        """Environment of the operator with these edits."""
        if not edits:
            return {}
        with self._lock:
            if edits not in self._releases:
                self._releases[edits] = release(self._folder / f"release-{len(self._releases)}", edits)
            return self._releases[edits]

    def _prepare(self, namespace: str) -> None:
        self._api.request("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}}).raise_for_status()
        eventually(
            "the default service account", lambda: self._api.get("ServiceAccount", namespace, "default")
        )
        manifests.prepare_namespace(self._api, namespace)

    def _settled(
        self, namespace: str, proxy: Proxy, reference: Future[Outcome] | None, wait: Patience
    ) -> str:
        """Wait until the operator is idle and the objects equal those of the reference; returns them."""
        expected = reference.result().objects if reference is not None else None
        found = ""

        def as_expected() -> bool:
            nonlocal found
            if not _is_idle(proxy):
                return False
            found = snapshot(self._api, namespace)
            return expected is None or found == expected

        def difference() -> str:
            before, after = (expected or "").splitlines(), found.splitlines()
            return "\n".join(unified_diff(before, after, "undisturbed", "disturbed", n=8, lineterm=""))

        wait.until("the objects equal those of an undisturbed chain", as_expected, difference)
        return found


def _is_idle(proxy: Proxy) -> bool:
    return not proxy.is_killed and time.monotonic() - proxy.last_write > QUIET_SECONDS


def _kubeconfig(server: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": server}}],
            "users": [{"name": "operator", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "operator"}}],
            "current-context": "proxy",
        }
    )
