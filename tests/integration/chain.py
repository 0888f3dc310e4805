"""Waiting for what a run comes to."""

from collections import Counter

from finetune_operator.api import kinds
from tests.integration.api import Api, Object
from tests.integration.manifests import is_true
from tests.integration.operators import Operator
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

CHAIN_SECONDS = 60
QUIET_SECONDS = 1.5
"""Longer than any chain of events that one write sets off."""

KINDS = ("FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "InferenceDeployment")


def until_condition(api: Api, what: tuple[str, str, str], type_: str, operator: Operator) -> Object:
    """The object `what` (namespace, kind, name), once its condition is True."""
    namespace, kind, name = what

    def reached() -> Object | None:
        found = api.get(kind, namespace, name)
        return found if is_true(found, type_) else None

    return eventually(
        f"{kind} {name} is {type_}",
        reached,
        CHAIN_SECONDS,
        describe=lambda: f"{api.get(kind, namespace, name)}\n{operator.log[-4000:]}",
    )


def until_settled(audit: AuditLog, user: str) -> None:
    """Until the operator has come to rest."""
    eventually(
        "the operator has come to rest",
        lambda: audit.seconds_since_write(user) > QUIET_SECONDS,
        describe=lambda: audit.writes(0, user)[-20:],
    )


def until_all_looked_at(api: Api, namespace: str, operator: Operator) -> None:
    """Until this process has looked at every object at least once, and none is waiting."""

    def done() -> bool:
        for kind in KINDS:
            there = len(api.list(kind, namespace))
            looked = operator.metric(f'finetune_reconcile_seconds_count{{kind="{kind}",result="ok"}}') or 0
            if looked < there:
                return False
        return operator.metric("finetune_queue_depth") == 0

    eventually("everything was looked at", done, describe=lambda: operator.log)


def until_all_watched(audit: AuditLog, mark: int, user: str) -> None:
    """Until each of our kinds was listed twice after the mark: by the process, and by its Kopf."""

    def done() -> bool:
        lists = (each for each in audit.since(mark) if each.user == user and each.verb == "list")
        listed = Counter(each.resource for each in lists)
        return all(listed[kind.plural] > 1 for kind in kinds.KINDS)

    eventually("Kopf has listed every kind", done)


def jobs_of_stage(api: Api, namespace: str, stage: str) -> list[Object]:
    """Jobs of this stage that exist now."""
    jobs = api.list("Job", namespace)
    return [job for job in jobs if job["metadata"].get("labels", {}).get("finetune.dev/stage") == stage]
