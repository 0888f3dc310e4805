"""What thousands of objects cost: caches keep what is read, and models share what is equal."""

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.caches import Caches
from finetune_operator.plan import Manifest

METADATA = {"name": "run-train", "namespace": "team", "uid": "u", "resourceVersion": "1"}
CONTAINER = {"name": "trainer", "image": "trainer:1", "env": [{"name": "CONFIG", "value": "{}"}]}
POD_SPEC = {"nodeName": "node", "containers": [CONTAINER], "volumes": [{"name": "store"}]}


def run() -> Manifest:
    spec = {"model": "m", "baseModel": {"uri": "pvc://m/x"}, "dataset": {"ref": {"name": "d"}}}
    return {"metadata": {"name": "run", "uid": "u", "resourceVersion": "1"}, "spec": spec}


def test_a_cached_job_does_not_hold_the_template_of_its_pods() -> None:
    caches = Caches()
    caches.jobs.put({"metadata": METADATA, "spec": {"backoffLimit": 3, "template": {"spec": POD_SPEC}}})
    job = caches.jobs.get("team", "run-train")
    assert job is not None
    assert job["spec"] == {"backoffLimit": 3}


def test_a_cached_pod_holds_where_it_runs_and_which_images_and_not_what_they_were_told() -> None:
    caches = Caches()
    caches.pods.put({"metadata": METADATA, "spec": POD_SPEC, "status": {"phase": "Running"}})
    pod = caches.pods.get("team", "run-train")
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


def test_models_share_the_note_of_which_fields_were_given() -> None:
    one, other = (FineTuneJob.model_validate(run()) for _ in range(2))
    assert one.spec.model_fields_set is other.spec.model_fields_set


def test_a_changed_copy_of_a_model_does_not_change_what_others_were_given() -> None:
    one, other = (FineTuneJob.model_validate(run()) for _ in range(2))
    one.spec.model_copy(update={"suspend": True})
    assert "suspend" not in other.spec.model_fields_set
