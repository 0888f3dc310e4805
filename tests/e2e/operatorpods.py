# SPDX-License-Identifier: Apache-2.0
"""The pods of the installed operator, and their answers at their own addresses."""

from typing import Final, cast

import httpx

from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_operator.api.crd import KINDS
from finetune_operator.api.meta import GROUP
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, uid_of
from tests.waiting import eventually
from tools.demo.install import RELEASE, SYSTEM

PORT: Final = 8080
ANSWER_SECONDS: Final = 5.0


def pods_of_operator(access: Access) -> list[Object]:
    """The operator's pods that are not terminating."""
    found = access.pods(SYSTEM, f"app.kubernetes.io/instance={RELEASE}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def readiness(pod: Object) -> Object:
    """The answer of /readyz; empty while the pod does not answer."""
    answer = _answer(pod, "readyz")
    return {} if answer is None else cast("Object", answer.json())


def metrics(pod: Object) -> dict[str, float]:
    """Value of each sample, by sample in the text format; empty while the pod does not answer."""
    answer = _answer(pod, "metrics")
    rows = () if answer is None else (row.rpartition(" ") for row in answer.text.splitlines())
    return {name: float(value) for name, _, value in rows if not name.startswith("#")}


def active(access: Access, other_than: tuple[str, ...] = ()) -> Object:
    """Wait for the pod that holds the Lease, has reconciled every object and has an empty queue; returns it.

    Args:
        access: access to the cluster.
        other_than: uids of pods to ignore.
    """

    def found() -> Object | None:
        for pod in pods_of_operator(access):
            if uid_of(pod) not in other_than and _is_idle(access, metrics(pod)):
                return pod
        return None

    return eventually(
        f"an operator is active, other than {other_than}",
        found,
        PATIENCE_SECONDS,
        describe=lambda: access.kubectl(
            "logs", f"--namespace={SYSTEM}", f"deployment/{RELEASE}", "--tail=30"
        ),
        pause=PAUSE_SECONDS,
    )


def _is_idle(access: Access, metrics: dict[str, float]) -> bool:
    if not metrics.get("finetune_active") or metrics["finetune_queue_depth"]:
        return False
    for kind in (kind for kind in KINDS if kind.namespaced):
        resource = f"{kind.plural}.{GROUP}"
        if not access.kubectl("get", f"crd/{resource}", "--ignore-not-found", "--output=name"):
            continue  # the definitions of an older release do not have this kind
        listed = access.kubectl("get", resource, "--all-namespaces", "--output=name")
        passes = metrics.get(f'finetune_reconcile_seconds_count{{kind="{kind.name}",result="ok"}}', 0)
        if passes < len(listed.split()):
            return False
    return True


def _answer(pod: Object, path: str) -> httpx.Response | None:
    address = pod["status"].get("podIP")
    if address is None:
        return None
    try:
        return httpx.get(f"http://{address}:{PORT}/{path}", trust_env=False, timeout=ANSWER_SECONDS)
    except httpx.TransportError:
        return None
