"""The installed operator's pods, as they answer at their own addresses."""

from typing import Final, cast

import httpx

from finetune_operator.api.kinds import KINDS
from finetune_operator.api.meta import GROUP
from tests.e2e.team import PATIENCE_SECONDS, PAUSE_SECONDS, uid_of
from tests.waiting import eventually
from tools.demo.access import Access, Object
from tools.demo.install import RELEASE, SYSTEM

PORT: Final = 8080
ANSWER_SECONDS: Final = 5.0


def pods_of_operator(access: Access) -> list[Object]:
    """Those that are not going."""
    found = access.pods(SYSTEM, f"app.kubernetes.io/instance={RELEASE}")
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def readiness(pod: Object) -> Object:
    """What /readyz says; nothing while it does not answer."""
    answer = _answer(pod, "readyz")
    return {} if answer is None else cast("Object", answer.json())


def metrics(pod: Object) -> dict[str, float]:
    """Value of each sample by how it is written in the text format; none while it does not answer."""
    answer = _answer(pod, "metrics")
    rows = () if answer is None else (row.rpartition(" ") for row in answer.text.splitlines())
    return {name: float(value) for name, _, value in rows if not name.startswith("#")}


def active(access: Access, other_than: tuple[str, ...] = ()) -> Object:
    """The pod that holds the Lease, once it has looked at every object and none waits for it.

    Args:
        access: the cluster.
        other_than: uids of pods that are not meant.
    """

    def found() -> Object | None:
        for pod in pods_of_operator(access):
            if uid_of(pod) not in other_than and _is_at_rest(access, metrics(pod)):
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


def _is_at_rest(access: Access, metrics: dict[str, float]) -> bool:
    if not metrics.get("finetune_active") or metrics["finetune_queue_depth"]:
        return False
    for kind in (kind for kind in KINDS if kind.namespaced):
        listed = access.kubectl("get", f"{kind.plural}.{GROUP}", "--all-namespaces", "--output=name")
        looked = metrics.get(f'finetune_reconcile_seconds_count{{kind="{kind.name}",result="ok"}}', 0)
        if looked < len(listed.split()):
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
