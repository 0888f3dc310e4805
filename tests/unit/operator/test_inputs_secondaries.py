# SPDX-License-Identifier: Apache-2.0
"""A new type of secondary resource is one entry of the table; everything else follows from it."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from finetune_operator.api.labels import OWNER_KIND, OWNER_NAME
from finetune_operator.engine.resources import JOB, ResourceType
from finetune_operator.plan import Key, Manifest
from finetune_operator.reconcile.inputs.related_types import RELATED_TYPES, Child, Lookup, Needs
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot
from finetune_operator.reconcile.scheduling import related
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.lookups import Lookups
from finetune_operator.runtime.snapshots import SnapshotReader
from tests.unit.operator.endpoints import endpoint

ROUTE = ResourceType("gateway.networking.k8s.io/v1alpha2", "TCPRoute", "tcproutes")
WORKLOAD = ResourceType("kueue.x-k8s.io/v1beta1", "Workload", "workloads")
QUEUE = ResourceType("kueue.x-k8s.io/v1beta1", "LocalQueue", "localqueues")

TYPES = (*RELATED_TYPES, Child(ROUTE), Child(WORKLOAD, selector="kueue.x-k8s.io/job-uid"), Lookup(QUEUE))

DESK = Key("InferenceDeployment", "team", "desk")
LABELS = {OWNER_KIND: DESK.kind, OWNER_NAME: DESK.name}


def obj(type_: ResourceType, name: str, owner: Manifest, labels: dict[str, str]) -> Manifest:
    reference = {
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }
    metadata = {
        "name": name,
        "namespace": "team",
        "uid": f"uid-of-{name}",
        "resourceVersion": "1",
        "labels": labels,
        "ownerReferences": [reference],
    }
    return {"apiVersion": type_.api_version, "kind": type_.kind, "metadata": metadata}


class Process:
    """The parts of a process that use the table, with three more types."""

    def __init__(self) -> None:
        self.caches = Caches(TYPES)
        self.reader = SnapshotReader(self.caches)
        self.desk: Manifest = endpoint().to_dict()
        self.desk["metadata"]["resourceVersion"] = "1"
        self.put(self.desk)

    def put(self, manifest: Manifest) -> Manifest:
        self.caches.by_kind[manifest["kind"]].put(manifest)
        return manifest

    def snapshot(self) -> Snapshot:
        resource = self.reader.resource(DESK)
        assert resource is not None
        return self.reader.snapshot(
            resource,
            now=datetime(2030, 1, 1, tzinfo=UTC),
            facts=OperatorFacts(namespace="finetune-system", trainer_image="trainer:1", nonce_key="0f"),
            entropy=b"",
            service_accounts=frozenset(),
            progress=None,
        )


def test_objects_of_another_child_type_are_in_the_snapshot_of_their_owner_and_wake_it() -> None:
    process = Process()
    route = process.put(obj(ROUTE, "desk", process.desk, LABELS))
    stranger = {"kind": DESK.kind, "metadata": {"name": "desk", "uid": "of-an-earlier-desk"}}
    process.put(obj(ROUTE, "earlier", stranger, LABELS))

    assert process.snapshot().children[ROUTE] == {"desk": route}
    assert related(ROUTE.kind, None, route, process.reader) == {DESK}


def test_what_a_child_controls_is_a_child_too_and_needs_no_labels_of_ours() -> None:
    process = Process()
    job = process.put(obj(JOB, "desk-check", process.desk, LABELS))
    workload = process.put(obj(WORKLOAD, "job-desk-check", job, {}))

    assert process.snapshot().children[WORKLOAD] == {"job-desk-check": workload}
    assert related(WORKLOAD.kind, None, workload, process.reader) == {DESK}


def test_each_child_type_is_watched_by_its_selector() -> None:
    watched = {child.type: child.selector for child in Process().caches.child_types}
    assert watched[ROUTE] == watched[JOB]
    assert watched[WORKLOAD] == "kueue.x-k8s.io/job-uid"
    assert QUEUE not in watched


@pytest.mark.parametrize("exists", [True, False])
async def test_an_object_of_another_type_is_looked_up_for_the_pass_that_needs_it(exists: bool) -> None:
    class Server:
        async def get(self, type_: ResourceType, namespace: str, name: str, _: str) -> Manifest | None:
            assert (type_, namespace, name) == (QUEUE, "team", "gpus")
            return {"metadata": {"name": name, "uid": "uid-of-gpus"}} if exists else None

    lookups = Lookups(cast(Any, Server()), TYPES)
    needs: Needs = {QUEUE: frozenset({"gpus"})}

    snapshot = Snapshot(
        now=datetime(2030, 1, 1, tzinfo=UTC),
        facts=OperatorFacts(namespace="finetune-system", trainer_image="trainer:1", nonce_key="0f"),
        looked_up=await lookups.get_all("team", needs),
    )

    assert snapshot.is_missing(QUEUE, "gpus") is not exists
    assert (snapshot.find(QUEUE, "gpus") is not None) is exists
