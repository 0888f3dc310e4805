# SPDX-License-Identifier: Apache-2.0
"""Memory for thousands of objects: caches keep only fields that are read, and models share equal parts."""

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.engine.resources import JOB, POD
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.models import MAX_SETTLED_MODELS, Models

METADATA = {"name": "run-train", "namespace": "team", "uid": "u", "resourceVersion": "1"}
CONTAINER = {"name": "trainer", "image": "trainer:1", "env": [{"name": "CONFIG", "value": "{}"}]}
POD_SPEC = {"nodeName": "node", "containers": [CONTAINER], "volumes": [{"name": "store"}]}


def run() -> Manifest:
    spec = {"model": "m", "baseModel": {"uri": "pvc://m/x"}, "dataset": {"ref": {"name": "d"}}}
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


def test_a_name_conflict_is_no_end() -> None:
    runs = Caches().kinds["FineTuneJob"]
    conflict = {"type": "Stalled", "status": "True", "reason": "NameConflict"}
    runs.put(run() | {"metadata": METADATA, "status": {"conditions": [conflict]}})
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
