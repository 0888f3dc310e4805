# SPDX-License-Identifier: Apache-2.0
"""Changes by others in the Deployment of a revision: the operator restores it, once per change."""

import json
from copy import deepcopy
from typing import Any

import pytest

from finetune_operator.manifests.labels import CORRECTED, CREATED_SPEC
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment import drift
from tests.unit.operator.endpoints import EndpointCluster, checkpoint, profile, serving

IMAGE = "spec.template.spec.containers[engine].image"


def pod(cluster: EndpointCluster, revision: str) -> Any:
    return cluster.deployments[revision]["spec"]["template"]["spec"]


def edit(cluster: EndpointCluster, revision: str, image: str = "registry.example/other:9") -> None:
    """Edit the engine's image."""
    edited = deepcopy(cluster.deployments[revision])
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = image
    edited["metadata"]["generation"] += 1
    cluster.deployments[revision] = edited


def as_stored(deployment: Manifest) -> Manifest:
    """The Deployment with defaults, omitted empty fields and quantities as the API server writes them."""
    stored = deepcopy(deployment)
    template = stored["spec"]["template"]["spec"]
    template["dnsPolicy"] = "ClusterFirst"
    template["volumes"].reverse()
    engine = template["containers"][0]
    engine["terminationMessagePolicy"] = "File"
    engine["env"].append({"name": "ADDED", "value": "by admission"})
    assert engine["resources"]["requests"] == {"cpu": "0.5", "memory": "1024Mi"}
    engine["resources"] = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    return stored


def test_an_image_that_somebody_edited_is_put_back_and_said() -> None:
    cluster, revision = serving()
    image = pod(cluster, revision)["containers"][0]["image"]
    edit(cluster, revision)
    cluster.log.clear()
    plan = cluster.reconcile()
    assert pod(cluster, revision)["containers"][0]["image"] == image
    (event,) = [event for event in plan.events if event.reason == "DriftCorrected"]
    assert f"Deployment {revision}: {IMAGE} was changed" in event.message
    assert cluster.log == [f"apply Deployment {revision}", "event DriftCorrected"]
    assert not cluster.reconcile().apply


@pytest.mark.parametrize("field", ["env", "initContainers", "volumes"])
def test_what_somebody_removed_is_put_back(field: str) -> None:
    cluster, revision = serving()
    before = deepcopy(cluster.deployments[revision]["spec"])
    edited = deepcopy(cluster.deployments[revision])
    spec = edited["spec"]["template"]["spec"]
    (spec["containers"][0] if field == "env" else spec)[field].pop()
    cluster.deployments[revision] = edited
    cluster.reconcile()
    assert cluster.deployments[revision]["spec"] == before


def test_the_replicas_are_the_specs_and_no_drift() -> None:
    cluster, revision = serving()
    cluster.edit(replicas=3)
    plan = cluster.reconcile()
    assert [apply.part for apply in plan.apply if apply.manifest["kind"] == "Deployment"] == [""]
    assert cluster.deployments[revision]["spec"]["replicas"] == 3


def test_what_the_api_server_and_admission_add_is_no_drift() -> None:
    cluster = EndpointCluster(checkpoint("first", "1"))
    pods = [{"stages": ["serve"], "resources": {"cpu": "0.5", "memory": "1024Mi"}}]
    cluster.put(profile(accelerator={"resource": "cpu"}, pods=pods))
    cluster.settle()
    (created,) = cluster.deployments.values()
    assert drift.changed_fields(as_stored(created)) == ()


@pytest.mark.parametrize(
    ("created", "live", "same"),
    [
        ("0.5", "500m", True),
        ("1024Mi", "1Gi", True),
        ("2", "2000m", True),
        ("1Gi", "1G", False),
        ("500m", "501m", False),
        ("Always", "Never", False),
        ("", None, True),
        (False, None, False),
        (0, 1, False),
    ],
)
def test_quantities_are_compared_by_what_they_stand_for(created: Any, live: Any, same: bool) -> None:
    assert drift._is_equal(created, live) is same


def test_a_correction_that_does_not_hold_is_tried_once_and_reported() -> None:
    cluster, revision = serving()
    edit(cluster, revision)
    cluster.reconcile()
    assert cluster.deployments[revision]["metadata"]["annotations"][CORRECTED] == "2"
    # Admission changes it again, in the same write.
    edit(cluster, revision)
    plan = cluster.reconcile()
    assert not plan.apply
    state = next(each for each in cluster.endpoint.status.conditions if each.type == "InSync")
    assert (state.status, state.reason) == ("False", "Overridden")
    assert IMAGE in state.message
    # Somebody's later edit is another matter.
    edit(cluster, revision, image="registry.example/third:1")
    cluster.reconcile()
    cluster.settle()
    assert "InSync" not in {each.type for each in cluster.endpoint.status.conditions}


def test_a_deployment_of_an_earlier_release_is_left_as_it_is() -> None:
    cluster, revision = serving()
    del cluster.deployments[revision]["metadata"]["annotations"][CREATED_SPEC]
    edit(cluster, revision)
    assert not cluster.reconcile().apply


@pytest.mark.parametrize("written", ["", "{", "[]", "null", "[" * 100_000])
def test_a_deployment_whose_recorded_spec_cannot_be_read_is_left_as_it_is(written: str) -> None:
    cluster, revision = serving()
    cluster.deployments[revision]["metadata"]["annotations"][CREATED_SPEC] = written
    edit(cluster, revision)
    assert not cluster.reconcile().apply


@pytest.mark.parametrize(
    "containers",
    [7, ["engine"], [{"name": []}], [{"name": "engine", "args": [{"name": {}}], "env": "9" * 99}]],
)
@pytest.mark.parametrize("corrected", ["", "²", "9" * 5000])
def test_a_recorded_spec_and_generation_of_any_form_are_compared(containers: Any, corrected: str) -> None:
    cluster, revision = serving()
    recorded = json.dumps({"template": {"spec": {"containers": containers, "volumes": [{"name": "1"}]}}})
    marks = {CREATED_SPEC: recorded, CORRECTED: corrected}
    cluster.deployments[revision]["metadata"]["annotations"] |= marks
    cluster.reconcile()


def test_another_image_of_the_operator_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, revision = serving()
    monkeypatch.setattr(
        "finetune_operator.reconcile.inferencedeployment.rollout.rollout_actions.build_deployment",
        lambda *_: pytest.fail("a live revision is not built again"),
    )
    before = cluster.deployments[revision]
    cluster.settle()
    assert cluster.deployments[revision] == before
