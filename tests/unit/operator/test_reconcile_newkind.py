# SPDX-License-Identifier: Apache-2.0
"""A new kind is a row in `KINDS` and a row in `KIND_ROWS`; the caches, passes and relations follow.

The kind of this test creates a run whenever its Dataset has a new version and the last run has ended.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import pytest

from finetune_operator.api.crd import KINDS, KINDS_BY_NAME, Column, Kind, build_crd
from finetune_operator.api.finetune_job import FineTuneJob, FineTuneJobSpec
from finetune_operator.api.meta import API_VERSION, Conditions, Model, Resource, Status
from finetune_operator.engine.cache_memory import CompressionPolicy
from finetune_operator.engine.resources import CLAIM
from finetune_operator.manifests.jobs import owner_reference
from finetune_operator.plan import Create, Key, Manifest, Plan
from finetune_operator.reconcile.inputs.indexes import BY_DATASET, address, namespace_of, read_spec
from finetune_operator.reconcile.inputs.related_types import Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kind_table import Change, IndexedObjects, KindRow, LockName, is_live
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    PassOutcome,
    PlanBuilder,
    Working,
    block,
    finish_pass,
)
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.scheduling import related
from finetune_operator.runtime.leader_term import FirstLists
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import Reason
from tests.unit.operator.memorycluster import NAMESPACE, NOW, MemoryCluster
from tests.unit.operator.runobjects import DATASET, VERSION, dataset, finetunejob, prepared, prerequisites
from tests.unit.operator.runsteps import RESULTS, STAGES

NAME: Final = "nightly"
DONE: Final = "app.kubernetes.io/done"


class RetrainingSpec(Model):
    """The run to create."""

    template: FineTuneJobSpec


class RetrainingStatus(Status):
    """What the operator has created."""

    phase: str = "Pending"
    version: str | None = None
    run: str | None = None
    conditions: Conditions = ()


class Retraining(Resource):
    """Trains on each version of a Dataset."""

    done_phase: ClassVar[str | None] = "Waiting"

    kind: str = "Retraining"
    spec: RetrainingSpec
    status: RetrainingStatus = RetrainingStatus()


def reconcile(retraining: Retraining, snapshot: Snapshot) -> Plan:
    draft, halt, status = PlanBuilder(snapshot), _halt(retraining, snapshot), retraining.status
    if halt is None:
        version = _latest(retraining, snapshot)
        name = f"{retraining.name}-{(version or '').rpartition('-')[2]}"
        status = status.model_copy(update={"version": version, "run": name})
        draft.create.append(Create(_run(retraining, name)))
        halt = Working("Training", f"FineTuneJob {name} is created")
    result = finish_pass(retraining, status, halt, snapshot.now)
    return draft.plan(result.manifest)


def _halt(retraining: Retraining, snapshot: Snapshot) -> PassOutcome | None:
    """How the pass ends; None if it creates a run."""
    run = snapshot.finetunejobs.get(retraining.status.run or "")
    if run is not None and not is_finished(run):
        return Working("Training", f"FineTuneJob {run.name} is running")
    latest = _latest(retraining, snapshot)
    if latest is None:
        return Blocked(Reason.WAITING_FOR_DATASET, "its Dataset has no version")
    if latest == retraining.status.version:
        return Done(Reason.AVAILABLE, f"trained on {latest}")
    return None


def _latest(retraining: Retraining, snapshot: Snapshot) -> str | None:
    ref = retraining.spec.template.dataset.ref
    found = snapshot.datasets.get(ref.name) if ref is not None else None
    return None if found is None else found.status.latest_version


def _run(retraining: Retraining, name: str) -> Manifest:
    metadata = {
        "name": name,
        "namespace": retraining.namespace,
        "ownerReferences": [owner_reference(retraining)],
    }
    spec = retraining.spec.template.to_dict()
    return {"apiVersion": API_VERSION, "kind": FineTuneJob.__name__, "metadata": metadata, "spec": spec}


def _by_dataset(retraining: Manifest) -> Iterator[str]:
    name = read_spec(retraining)["template"]["dataset"]["ref"]["name"]
    yield address(namespace_of(retraining), name)


def _needs(_: Retraining, __: Snapshot) -> Needs:
    return {CLAIM: frozenset({"artifacts"})}


def _relations(change: Change, _: IndexedObjects) -> Iterator[Key]:
    yield Key(FineTuneJob.__name__, change.namespace, f"{change.name}-1")


def _lock(key: Key, _: IndexedObjects) -> LockName:
    return ("retraining", key.namespace)


ROW: Final = KindRow(
    model=Retraining,
    reconcile=reconcile,
    own_needs=_needs,
    relations=_relations,
    own_indexers={BY_DATASET: _by_dataset},
    lock=_lock,
    compression=CompressionPolicy(lambda each: DONE in (each["metadata"].get("labels") or {})),
    needs_no_lists=is_live,
)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    kind = Kind(Retraining, "retrainings", "rtr", (Column("Phase", ".status.phase"),))
    monkeypatch.setitem(KINDS_BY_NAME, ROW.kind, kind)
    monkeypatch.setitem(KIND_ROWS, ROW.kind, ROW)
    cluster = MemoryCluster(*prerequisites(), dataset(), retraining())
    cluster.settle()
    return cluster


def retraining() -> Manifest:
    spec = {"template": finetunejob()["spec"]}
    return {"apiVersion": API_VERSION, "kind": ROW.kind, "metadata": {"name": NAME}, "spec": spec}


RUN: Final = f"{NAME}-{VERSION.rpartition('-')[2]}"
KEY: Final = Key(ROW.kind, NAMESPACE, NAME)


def state(cluster: MemoryCluster) -> tuple[str, dict[str, str]]:
    return cluster.objects[ROW.kind, NAME]["status"]["phase"], cluster.states(ROW.kind, NAME)


def related_to(cluster: MemoryCluster, kind: str, name: str) -> frozenset[Key]:
    return related(kind, None, cluster.objects[kind, name], cluster.reader())


def test_every_kind_of_the_api_has_a_row() -> None:
    assert [*KIND_ROWS] == [kind.name for kind in KINDS]
    assert all(row.model is KINDS_BY_NAME[name].model for name, row in KIND_ROWS.items())


def test_its_definition_follows_from_its_row(cluster: MemoryCluster) -> None:
    definition: Any = build_crd(KINDS_BY_NAME[ROW.kind])
    assert definition["spec"]["names"]["plural"] == ROW.type.plural == "retrainings"


def test_it_waits_for_its_dataset_and_a_change_of_the_dataset_wakes_it(cluster: MemoryCluster) -> None:
    assert state(cluster) == ("Blocked", {"Reconciling": "WaitingForDataset"})
    assert KEY in related_to(cluster, "Dataset", DATASET)
    assert not cluster.of("FineTuneJob")


def test_it_creates_runs_that_train_and_wake_it(cluster: MemoryCluster) -> None:
    cluster.succeed("prepare", prepared(), after=5)
    cluster.settle()
    assert state(cluster) == ("Training", {"Reconciling": "Training"})
    assert [*cluster.of("FineTuneJob")] == [RUN]
    assert KEY in related_to(cluster, "FineTuneJob", RUN)
    uid = cluster.objects["FineTuneJob", RUN]["metadata"]["uid"]
    for stage in STAGES:
        cluster.succeed(stage, RESULTS[stage]().model_copy(update={"run": uid}), after=10)
        cluster.settle()
    assert cluster.states("FineTuneJob", RUN)["Ready"] == "Promoted"
    assert state(cluster) == ("Waiting", {"Ready": "Available"})
    cluster.delete(ROW.kind, NAME)
    assert not cluster.of("FineTuneJob"), "it controls its runs"


def test_its_passes_have_its_lock_its_needs_and_what_its_changes_concern(cluster: MemoryCluster) -> None:
    assert cluster.reader().lock(KEY) == ("retraining", NAMESPACE)
    _, snapshot = cluster.snapshot(ROW.kind, NAME)
    assert snapshot.find(CLAIM, "artifacts") is not None
    assert related_to(cluster, ROW.kind, NAME) == {Key("FineTuneJob", NAMESPACE, f"{NAME}-1")}


def test_any_pass_over_it_can_be_blocked(cluster: MemoryCluster) -> None:
    result = block(cluster.get(ROW.kind, NAME), Reason.FORBIDDEN, "raise the quota", NOW)
    assert result.manifest["phase"] == "Blocked"


def test_its_objects_are_compressed_and_start_as_its_row_says(cluster: MemoryCluster) -> None:
    caches = cluster.caches
    assert FirstLists(caches).allow(KEY)
    cluster.objects[ROW.kind, NAME]["metadata"]["labels"] = {DONE: "true"}
    cluster.reader()
    assert caches.of(Retraining).is_settled(NAMESPACE, NAME)
