# SPDX-License-Identifier: Apache-2.0
"""Waits for states of runs and of the operator."""

from finetune_operator.api import crd
from tests.integration.api import Api, Object
from tests.integration.manifests import is_true
from tests.integration.operators import Operator
from tests.waiting import eventually
from tools.cluster.audit import AuditLog

CHAIN_SECONDS = 60
QUIET_SECONDS = 1.5
"""Longer than any sequence of reactions to one write."""

KINDS = ("FineTuneJob", "Dataset", "DatasetVersion", "Checkpoint", "InferenceDeployment")


def until_condition(api: Api, what: tuple[str, str, str], type_: str, operator: Operator) -> Object:
    """The object `what` (namespace, kind, name) as soon as its condition is True."""
    namespace, kind, name = what

    def get() -> Object | None:
        found = api.get(kind, namespace, name)
        return found if is_true(found, type_) else None

    return eventually(
        f"{kind} {name} is {type_}",
        get,
        CHAIN_SECONDS,
        describe=lambda: f"{api.get(kind, namespace, name)}\n{operator.log[-4000:]}",
    )


def until_settled(audit: AuditLog, user: str) -> None:
    """Wait until the operator does not write any more."""
    eventually(
        "the operator does not write any more",
        lambda: audit.seconds_since_write(user) > QUIET_SECONDS,
        describe=lambda: audit.writes(0, user)[-20:],
    )


def until_all_reconciled(api: Api, namespace: str, operator: Operator) -> None:
    """Wait until this process has reconciled every object at least once and its queue is empty."""

    def done() -> bool:
        for kind in KINDS:
            objects = len(api.list(kind, namespace))
            passes = operator.metric(f'finetune_reconcile_seconds_count{{kind="{kind}",result="ok"}}') or 0
            if passes < objects:
                return False
        return operator.metric("finetune_queue_depth") == 0

    eventually("every object was reconciled", done, describe=lambda: operator.log)


def until_all_watched(audit: AuditLog, mark: int, user: str) -> None:
    """Wait until each of our kinds was listed twice after the mark: by the process, and by its Kopf."""

    def done() -> bool:
        listed = audit.lists(mark, user)
        return all(listed[kind.plural] >= 2 for kind in crd.KINDS)

    eventually("Kopf has listed every kind", done)


def jobs_of_stage(api: Api, namespace: str, stage: str) -> list[Object]:
    """Existing Jobs of this stage."""
    jobs = api.list("Job", namespace)
    return [job for job in jobs if job["metadata"].get("labels", {}).get("finetune.dev/stage") == stage]
