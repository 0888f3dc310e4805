"""Runs chains with disturbances, each in a namespace and with an operator of its own."""

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
"""Longer than any chain of events that one write sets off."""
ATTEMPTS: Final = 3
"""A pod may end before it was seen running, and then the write that says so does not come."""
LOG_CHARACTERS: Final = 4000
NOWHERE: Final = "192.0.2.1"
"""An address that leads nowhere: no pod reports in these chains."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a chain came to.

    Attributes:
        objects: that there are in the end, see `snapshot`.
        started: stages whose pods ran, sorted.
        made: how often the operator created each object, and deleted each.
        writes: identities of all its writes in their order.
        events: identities of the watch events that it was told, in the order of their first times.
    """

    objects: str
    started: tuple[str, ...]
    made: Counter[str]
    writes: tuple[str, ...]
    events: tuple[str, ...]


Verdicts: TypeAlias = Mapping[Trial, Future[None]]
"""Chains that run or have run; one that did not end as it should has an AssertionError."""


class NothingHappened(AssertionError):
    """What should have been disturbed did not come."""


class Laboratory:
    """Any number of chains at a time on one control plane.

    Args:
        control_plane: with our CRDs.
        api: as a user with all rights.
        folder: for logs and kubeconfigs.
    """

    def __init__(self, control_plane: ControlPlane, api: Api, folder: Path) -> None:
        self._api = api
        self._user = control_plane.client("operators-behind-proxies")
        self._folder = folder
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._releases: dict[tuple[Edit, ...], Mapping[str, str]] = {}

    def compare(self, trial: Trial, reference: Future[Outcome]) -> None:
        """Run a chain that should come to the same as the reference.

        Raises:
            AssertionError: it does not; the message says in what they differ.
        """
        outcome = self._run_until_disturbed(trial, reference)
        expected = reference.result()
        assert outcome.started == expected.started, "not the same stages ran"
        assert outcome.made == expected.made, "not the same objects were made and deleted"

    def _run_until_disturbed(self, trial: Trial, reference: Future[Outcome]) -> Outcome:
        for _ in range(ATTEMPTS - 1):
            with suppress(NothingHappened):
                return self.run(trial, reference)
        return self.run(trial, reference)

    def run(self, trial: Trial, reference: Future[Outcome] | None = None) -> Outcome:
        """Run a chain to its end, which is reached when its objects are those of the reference, if any.

        Raises:
            AssertionError: it does not come to its end.
            NothingHappened: it does, without the disturbance.
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
            wait.until("the operator is at rest", lambda: _rests(proxy))
            if trial.disturbance is not None and not proxy.happened.is_set():
                raise NothingHappened(f"{trial}: no such write or event in this chain")
            restarts = 1 if kills(trial.disturbance) else 0
            assert operator.restarts == restarts, f"{operator.restarts} restarts\n{operator.log}"
            return Outcome(
                objects=objects,
                started=tuple(sorted(kubelet.started)),
                made=proxy.made,
                writes=tuple(proxy.asked),
                events=tuple(dict.fromkeys(proxy.told)),
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
        """The objects once the operator is at rest and they are those of the reference."""
        expected = reference.result().objects if reference is not None else None
        found = ""

        def as_expected() -> bool:
            nonlocal found
            if not _rests(proxy):
                return False
            found = snapshot(self._api, namespace)
            return expected is None or found == expected

        def difference() -> str:
            before, after = (expected or "").splitlines(), found.splitlines()
            return "\n".join(unified_diff(before, after, "undisturbed", "disturbed", n=8, lineterm=""))

        wait.until("the objects are those of an undisturbed chain", as_expected, difference)
        return found


def _rests(proxy: Proxy) -> bool:
    return not proxy.away and time.monotonic() - proxy.last_write > QUIET_SECONDS


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
