# SPDX-License-Identifier: Apache-2.0
"""Deletion of content in a bucket that objects in other namespaces use, with real caches."""

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Key, Manifest, Plan
from finetune_operator.reconcile.features.peers import KEY_BYTES
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.reconcile.scheduling import related
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.snapshots import SnapshotReader
from tests.unit.operator.runobjects import CHECKPOINT, JOB, ROWS, VERSION, WEIGHTS
from tests.unit.operator.runsteps import ended

BUCKET = f"s3://artifacts/team/checkpoints/{'c' * 64}"
CLAIM = f"pvc://artifacts/checkpoints/{'c' * 64}"
PINS: Manifest = {"spec": {"pin": {"uri": BUCKET, "digest": WEIGHTS}}}
SERVES: Manifest = {
    "spec": {"follow": {"modelLine": "copied"}},
    "status": {"models": [{"name": "router", "digest": WEIGHTS}]},
}
PINS_THE_NAME: Manifest = {"spec": {"pin": {"checkpoint": CHECKPOINT}}}
GOING: Manifest = {**PINS, "deletionTimestamp": "2030-01-02T04:00:00Z"}


class Scene:
    """A finished run in namespace `team`, and its records, in the caches of a process."""

    def __init__(self, uri: str = BUCKET) -> None:
        self.caches = Caches()
        self.reader = SnapshotReader(self.caches)
        self._version = 0
        run = ended(promotion={"mode": "Manual"}, deletionPolicy="Delete")
        names = (("FineTuneJob", JOB), ("Checkpoint", CHECKPOINT), ("DatasetVersion", VERSION))
        self.run, self.record, self.rows = (deepcopy(run.objects[key]) for key in names)
        self.record["spec"]["uri"] = uri
        self.rows["status"]["locations"] = [uri.partition("/checkpoints/")[0]]
        for manifest in (self.run, self.record, self.rows):
            manifest["spec"]["deletionPolicy"] = "Delete"
            self.put(manifest)

    def put(self, manifest: Manifest, **metadata: Any) -> None:
        self._version += 1
        manifest["metadata"] |= {"resourceVersion": str(self._version), **metadata}
        self.caches.kinds[manifest["kind"]].put(deepcopy(manifest))

    def delete(self, manifest: Manifest) -> None:
        self.put(manifest, deletionTimestamp="2030-01-02T04:00:00Z", finalizers=[FINALIZER])

    def plan(self, manifest: Manifest) -> Plan:
        metadata = manifest["metadata"]
        resource = self.reader.resource(Key(manifest["kind"], metadata["namespace"], metadata["name"]))
        assert resource is not None
        snapshot = self.reader.snapshot(
            resource,
            now=datetime(2030, 1, 2, 5, 0, tzinfo=UTC),
            facts=OperatorFacts(namespace="finetune-system", trainer_image="trainer:1", nonce_key="0f"),
            entropy=bytes(KEY_BYTES),
            service_accounts=frozenset(),
            progress=None,
        )
        return KIND_ROWS[resource.kind].reconcile(resource, snapshot)


def endpoint(namespace: str, **fields: Any) -> Manifest:
    metadata = {"name": "desk", "namespace": namespace, "uid": f"uid-of-{namespace}"}
    if "deletionTimestamp" in fields:
        metadata["deletionTimestamp"] = fields["deletionTimestamp"]
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": metadata,
        "spec": {
            "baseModel": {"uri": "pvc://models/gemma"},
            "models": [{"name": "router", **fields["spec"]}],
        },
        "status": fields.get("status", {}),
    }


def another_run(namespace: str, resolved: Manifest, *made: str) -> Manifest:
    """A run at this stage, whose records have arbitrary names."""
    run: Manifest = deepcopy(Scene().run)
    run["metadata"] |= {"name": "another", "namespace": namespace, "uid": "uid-of-another"}
    checkpoints = [{"name": "another-1", "step": 1, "digest": digest} for digest in made]
    run["status"] = {"resolved": resolved, "checkpoints": checkpoints}
    return run


def state(plan: Plan) -> str:
    """Reason of the Reconciling condition."""
    assert plan.status is not None
    return next(str(c["reason"]) for c in plan.status["conditions"] if c["type"] == "Reconciling")


@pytest.mark.parametrize(
    ("uri", "user", "expected"),
    [
        pytest.param(BUCKET, PINS, "CleaningUp", id="it pins the weights and has not served them"),
        pytest.param(BUCKET, {**PINS, "status": SERVES["status"]}, "InUse", id="it pins and serves them"),
        pytest.param(BUCKET, SERVES, "InUse", id="it serves the weights"),
        pytest.param(BUCKET, GOING, "CleaningUp", id="it is being deleted itself"),
        pytest.param(BUCKET, PINS_THE_NAME, "CleaningUp", id="it pins a record of its own namespace"),
        pytest.param(CLAIM, PINS, "CleaningUp", id="the weights are in a claim"),
    ],
)
def test_weights_in_a_bucket_wait_for_an_endpoint_of_any_namespace_that_serves_them(
    uri: str, user: Manifest, expected: str
) -> None:
    scene = Scene(uri)
    scene.put(endpoint("prod", **user))
    scene.delete(scene.record)
    plan = scene.plan(scene.record)
    assert state(plan) == expected
    assert bool(plan.create) is (expected == "CleaningUp")
    assert ("an InferenceDeployment in another namespace" in str(plan.status)) is (expected == "InUse")


READS = {"store": "s3://artifacts/team", "datasetDigest": ROWS}


@pytest.mark.parametrize(
    ("uri", "run", "expected"),
    [
        pytest.param(
            BUCKET, another_run("prod", READS), "a FineTuneJob in another namespace", id="it reads the rows"
        ),
        pytest.param(CLAIM, another_run("team", READS), "FineTuneJob another", id="in the same namespace"),
        pytest.param(
            BUCKET,
            another_run("prod", {**READS, "store": "pvc://artifacts"}),
            None,
            id="it reads from a claim",
        ),
        pytest.param(BUCKET, another_run("prod", {**READS, "datasetDigest": WEIGHTS}), None, id="other rows"),
    ],
)
def test_rows_wait_for_a_run_that_reads_them_from_another_record_which_goes_too(
    uri: str, run: Manifest, expected: str | None
) -> None:
    scene = Scene(uri)
    scene.put(run)
    scene.delete(scene.rows)
    plan = scene.plan(scene.rows)
    assert state(plan) == ("InUse" if expected else "CleaningUp")
    assert expected is None or f"is removed when {expected} no longer needs it" in str(plan.status)


def test_weights_wait_for_a_run_that_judges_the_same_ones() -> None:
    scene = Scene()
    judging = another_run("prod", READS, WEIGHTS)
    scene.put(judging)
    scene.delete(scene.record)
    assert state(scene.plan(scene.record)) == "InUse"
    done = {
        "type": "Ready",
        "reason": "Promoted",
        "status": "True",
        "lastTransitionTime": "2030-01-02T04:00:00Z",
    }
    judging["status"] |= {"observedGeneration": 1, "conditions": [done]}
    scene.put(judging)
    assert state(scene.plan(scene.record)) == "CleaningUp"
    del judging["status"]["conditions"]
    scene.put(judging, deletionTimestamp="2030-01-02T04:00:00Z")
    assert state(scene.plan(scene.record)) == "CleaningUp"


def test_an_endpoint_of_the_same_namespace_is_named_once() -> None:
    scene = Scene()
    scene.put(endpoint("team", **PINS))
    scene.delete(scene.record)
    plan = scene.plan(scene.record)
    assert f"{BUCKET} is removed when InferenceDeployment desk no longer needs it" in str(plan.status)


def test_a_checkpoint_that_another_namespace_serves_outlives_its_run() -> None:
    scene = Scene()
    scene.put(endpoint("prod", **SERVES))
    scene.delete(scene.run)
    (event,) = scene.plan(scene.run).events
    assert f"{CHECKPOINT} (in use by an InferenceDeployment in another namespace)" in event.message


def test_a_record_that_waits_is_looked_at_when_an_endpoint_of_another_namespace_changes() -> None:
    scene = Scene()
    desk = endpoint("prod", **SERVES)
    scene.put(desk)

    def looked_at() -> frozenset[Key]:
        return related("InferenceDeployment", desk, None, scene.reader)

    assert looked_at() == frozenset()
    scene.delete(scene.record)
    scene.record["status"] = scene.plan(scene.record).status
    scene.put(scene.record)
    scene.caches.kinds["InferenceDeployment"].remove(desk)
    assert looked_at() == {Key("Checkpoint", "team", CHECKPOINT)}
    scene.caches.kinds["Checkpoint"].remove(scene.record)
    assert looked_at() == frozenset()
