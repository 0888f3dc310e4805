# SPDX-License-Identifier: Apache-2.0
"""Memory for thousands of objects: caches keep only fields that are read, and models share equal parts."""

import tracemalloc

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.engine.resources import JOB, POD, POD_DISRUPTION_BUDGET, SERVICE
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import READ_PREFIXES, Caches
from finetune_operator.runtime.snapshots import MAX_SETTLED_MODELS, Models
from tests.unit.operator.goldencases import GOLDEN, load, reviewed

METADATA = {"name": "run-train", "namespace": "team", "uid": "u", "resourceVersion": "1"}
CONTAINER = {"name": "trainer", "image": "trainer:1", "env": [{"name": "CONFIG", "value": "{}"}]}
POD_SPEC = {"nodeName": "node", "containers": [CONTAINER], "volumes": [{"name": "store"}]}


def run() -> Manifest:
    spec = {"modelLine": "m", "baseModel": {"uri": "pvc://m/x"}, "dataset": {"ref": {"name": "d"}}}
    metadata = {"name": "run", "uid": "u", "resourceVersion": "1"}
    return {"kind": "FineTuneJob", "metadata": metadata, "spec": spec}


def test_a_cached_job_does_not_hold_the_template_of_its_pods() -> None:
    caches = Caches()
    caches.children[JOB].put(
        {"metadata": METADATA, "spec": {"backoffLimit": 3, "template": {"spec": POD_SPEC}}}
    )
    job = caches.children[JOB].get("team", "run-train")
    assert job is not None
    assert job["spec"] == {"backoffLimit": 3}


def test_a_cached_pod_holds_where_it_runs_and_which_images_and_not_what_they_were_told() -> None:
    caches = Caches()
    caches.children[POD].put({"metadata": METADATA, "spec": POD_SPEC, "status": {"phase": "Running"}})
    pod = caches.children[POD].get("team", "run-train")
    assert pod is not None
    assert pod["spec"] == {
        "nodeName": "node",
        "containers": [{"name": "trainer", "image": "trainer:1"}],
    }
    assert pod["status"] == {"phase": "Running"}


def test_a_cached_checkpoint_does_not_hold_its_loss_curve() -> None:
    caches = Caches()
    spec = {"step": 10, "lossCurve": [{"step": 10, "train": 2.5}]}
    caches.kinds["Checkpoint"].put({"metadata": METADATA, "spec": spec, "status": {"observedGeneration": 1}})
    checkpoint = caches.kinds["Checkpoint"].get("team", "run-train")
    assert checkpoint is not None
    assert checkpoint["spec"] == {"step": 10}
    assert checkpoint["status"] == {"observedGeneration": 1}
    assert "lossCurve" in spec


ENDED = {"type": "Ready", "status": "True", "reason": "Promoted"}


def test_a_run_that_has_ended_is_settled_and_one_that_is_being_deleted_is_not() -> None:
    runs = Caches().kinds["FineTuneJob"]
    ended = run() | {"status": {"phase": "Succeeded", "conditions": [ENDED]}}
    going = {**ended["metadata"], "name": "going", "deletionTimestamp": "2030-01-01T00:00:00Z"}
    runs.put(run() | {"metadata": {**METADATA, "name": "working"}})
    runs.put(ended | {"metadata": {**METADATA, "name": "ended"}})
    runs.put(ended | {"metadata": {**METADATA, **going}})
    assert {name: runs.is_settled("team", name) for name in ("working", "ended", "going")} == {
        "working": False,
        "ended": True,
        "going": False,
    }
    assert runs.notes() == {("team", "Succeeded"): 1}


def test_a_field_that_waits_for_a_release_is_no_end() -> None:
    runs = Caches().kinds["FineTuneJob"]
    reserved = {"type": "Stalled", "status": "True", "reason": "NotImplemented"}
    runs.put(run() | {"metadata": METADATA, "status": {"conditions": [reserved]}})
    assert not runs.is_settled("team", "run-train")


def test_of_settled_objects_only_the_models_that_were_read_last_are_kept() -> None:
    store = Caches().kinds["FineTuneJob"]
    models = Models(store, FineTuneJob)
    for number in range(MAX_SETTLED_MODELS + 50):
        metadata = {**METADATA, "name": f"run-{number}", "uid": f"u-{number}", "resourceVersion": "1"}
        store.put(
            {"metadata": metadata, "spec": run()["spec"], "kind": "FineTuneJob"}
            | {"status": {"conditions": [{**ENDED, "lastTransitionTime": "2030-01-01T00:00:00Z"}]}}
        )
        found = models.get("team", f"run-{number}")
        assert found is not None
        assert found.uid == f"u-{number}"
    assert len(models._settled) == MAX_SETTLED_MODELS
    assert not models._parsed


def test_models_share_the_note_of_which_fields_were_given() -> None:
    one, other = (FineTuneJob.model_validate(run()) for _ in range(2))
    assert one.spec.model_fields_set is other.spec.model_fields_set


def test_a_changed_copy_of_a_model_does_not_change_what_others_were_given() -> None:
    one, other = (FineTuneJob.model_validate(run()) for _ in range(2))
    one.spec.model_copy(update={"suspend": True})
    assert "suspend" not in other.spec.model_fields_set


def service(namespace: str, number: int, **annotations: str) -> Manifest:
    metadata = {"name": f"s-{number}", "namespace": namespace, "uid": f"{namespace}-{number}"}
    return {
        "metadata": {**metadata, "resourceVersion": str(number + 1), "annotations": annotations},
        "spec": {"ports": [{"port": 80}]},
    }


def stored(caches: Caches, namespace: str) -> int:
    return len(caches.children[SERVICE].names(namespace))


def test_annotations_and_labels_that_nothing_reads_take_no_memory() -> None:
    caches = Caches()
    tracemalloc.start()
    try:
        for number in range(1000):
            large = service("team", number, note=f"{number}-" * 40_000, **{"finetune.dev/applied": "hash"})
            large["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "us", "helm.sh/chart": "x" * 60}
            caches.children[SERVICE].put(large)
        del large
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 5 * 2**20
    kept = caches.children[SERVICE].get("team", "s-999")
    assert kept is not None
    assert kept["metadata"]["annotations"] == {"finetune.dev/applied": "hash"}
    assert kept["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "us"}


def forged(namespace: str, number: int) -> Manifest:
    """With 200 kB in an annotation that the operator reads."""
    return service(namespace, number, **{"finetune.dev/created-spec": f"{number}-" + "x" * 200_000})


def test_the_objects_of_one_namespace_take_a_bounded_memory_and_others_are_not_affected() -> None:
    caches = Caches(max_namespace_mebibytes=16)
    tracemalloc.start()
    try:
        for number in range(1000):
            caches.children[SERVICE].put(forged("hostile", number))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 20 * 2**20
    assert caches.bound.used_bytes("hostile") <= 16 * 2**20
    assert caches.bound.left_out("hostile") == 1000 - stored(caches, "hostile")
    assert caches.children[SERVICE].put(forged("team", 1))
    assert caches.bound.left_out("team") == 0
    assert caches.bound.exceeded == 1


def test_a_namespace_is_read_again_when_its_objects_are_deleted() -> None:
    caches = Caches(max_namespace_mebibytes=1)
    services = caches.children[SERVICE]
    # The bound is that of all types together.
    for number in range(4):
        services.put(forged("team", number))
        caches.children[POD_DISRUPTION_BUDGET].put(forged("team", number))
    assert caches.bound.left_out("team") == 3
    for number in range(2):
        services.remove(forged("team", number))
        caches.children[POD_DISRUPTION_BUDGET].remove(forged("team", number))
    assert services.put(forged("team", 3))
    # A list without an object says that it is gone, too.
    caches.children[POD_DISRUPTION_BUDGET].prune({"team-2"}, "100")
    assert caches.bound.left_out("team") == 1
    assert caches.children[POD_DISRUPTION_BUDGET].put(forged("team", 2))
    assert caches.bound.left_out("team") == 0
    for store in (services, caches.children[POD_DISRUPTION_BUDGET]):
        store.prune(set(), "100")
    assert caches.bound.used_bytes("team") == 0


def test_a_stored_object_that_grows_beyond_the_bound_keeps_its_older_state() -> None:
    caches = Caches(max_namespace_mebibytes=1)
    services = caches.children[SERVICE]
    services.put(service("team", 0))
    large = service("team", 0, **{"finetune.dev/created-spec": "x" * 2**21})
    large["metadata"]["resourceVersion"] = "50"
    assert not services.put(large)
    kept = services.get("team", "s-0")
    assert kept is not None
    assert kept["metadata"]["annotations"] == {}
    assert caches.bound.left_out("team") == 1
    # Deleted and created again: the older state is of another object.
    assert not services.put(
        large | {"metadata": {**large["metadata"], "uid": "new", "resourceVersion": "60"}}
    )
    assert services.get("team", "s-0") is None


def test_four_thousand_active_runs_of_one_namespace_fit() -> None:
    case = load(GOLDEN / "input" / "run-shows-progress.yaml")
    caches = Caches()
    for number, obj in enumerate(case.objects):
        if obj["kind"] in caches.by_kind:
            marks = {"resourceVersion": str(number + 1), "uid": obj["metadata"].get("uid", str(number))}
            caches.by_kind[obj["kind"]].put(obj | {"metadata": {**obj["metadata"], **marks}})
    assert caches.bound.used_bytes("team") * 4000 < caches.bound.limit_bytes


def test_the_marks_of_everything_that_the_operator_writes_are_kept() -> None:
    """Otherwise it would find each of its objects changed by others in every pass."""
    keys: set[str] = set()
    for path in (GOLDEN / "output").glob("*.yaml"):
        planned = reviewed(path)
        for manifest in [*planned.get("create", ()), *planned.get("apply", ())]:
            for marks in ("labels", "annotations"):
                keys |= (manifest.get("manifest", manifest)["metadata"].get(marks) or {}).keys()
    assert len(keys) > 10
    assert {key for key in keys if not key.startswith(READ_PREFIXES)} == set()
