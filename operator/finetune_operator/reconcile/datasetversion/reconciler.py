# SPDX-License-Identifier: Apache-2.0
"""Record in the status of a DatasetVersion which stores hold its content."""

from finetune_operator.api.dataset_version import MAX_LOCATIONS, DatasetVersion
from finetune_operator.manifests.labels import STORE
from finetune_operator.plan import Plan
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records import deletion, retention
from finetune_operator.reconcile.records.content_removal import finalizer_update
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, Reason


def reconcile(version: DatasetVersion, snapshot: Snapshot) -> Plan:
    """Plan one pass over a DatasetVersion."""
    if version.metadata.deletion_timestamp is not None:
        return deletion.finalize(version, snapshot)
    deletions = retention.enforce_limit(version, snapshot)
    if deletions is not None:
        return deletions
    generation = version.metadata.generation
    locations = _locations(version, snapshot)
    found = bool(locations)
    missing = f"it is unknown which store holds the content: annotate the version with {STORE}: pvc://CLAIM"
    new = version.status.model_copy(
        update={
            "observed_generation": generation,
            "locations": locations,
            "conditions": conditions.set_condition(
                conditions.drop_conditions(version.status.conditions, *conditions.STATES),
                ConditionType.AVAILABLE,
                "True" if found else "False",
                Reason.AVAILABLE if found else Reason.STORE_MISSING,
                f"in {', '.join(locations)}" if found else missing,
                generation=generation,
                now=snapshot.now,
            ),
        }
    )
    return Plan(status=conditions.status_manifest(new), metadata=finalizer_update(version))


def _locations(version: DatasetVersion, snapshot: Snapshot) -> tuple[str, ...]:
    """Known stores first, then the store of the first write, then that of the Dataset's last preparation."""
    found = [*version.status.locations]
    written_to = version.metadata.annotations.get(STORE)
    if written_to:
        found.append(written_to)
    dataset = snapshot.datasets.get(version.spec.dataset)
    latest = dataset.status if dataset is not None else None
    if latest is not None and latest.store is not None and latest.latest_version == version.name:
        found.append(latest.store)
    return tuple(dict.fromkeys(found))[:MAX_LOCATIONS]
