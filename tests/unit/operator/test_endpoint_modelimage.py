# SPDX-License-Identifier: Apache-2.0
"""Endpoints that read a whole model in place in an OCI image, which their pods mount as a volume."""

from typing import Any

from finetune_operator.plan import Manifest
from finetune_trainer.contract.serving import MergedWeights
from tests.unit.operator.endpoints import BASE, EndpointCluster, checkpoint, digest, profile
from tests.unit.operator.test_endpoint_modelcache import fetch_config, pod_of

IMAGE = f"registry.example/models/base@{digest('a')}"
OTHER = f"registry.example/models/other@{digest('c')}"


def with_images(images: dict[str, str], *checkpoints: Any, **spec: Any) -> EndpointCluster:
    """An endpoint after its first passes; its profile has these images by the digest of their model."""
    cluster = EndpointCluster(*(checkpoints or (checkpoint("first", "1"),)), **spec)
    listed = [{"model": model, "reference": reference} for model, reference in images.items()]
    cluster.put(profile(serving={"modelCache": {"images": listed}}))
    cluster.settle()
    return cluster


def volumes(pod: Manifest) -> list[Manifest]:
    return [each for each in pod["volumes"] if "image" in each]


def test_pods_mount_the_image_of_the_base_model_and_copy_adapters_only() -> None:
    cluster = with_images({BASE: IMAGE, digest("d"): OTHER})

    assert not cluster.cluster.of("Job"), "nothing has to be filled"
    pod = pod_of(cluster)
    assert volumes(pod) == [
        {"name": "model-image", "image": {"reference": IMAGE, "pullPolicy": "IfNotPresent"}}
    ]
    mount = {"name": "model-image", "mountPath": "/mnt/model-cache", "readOnly": True}
    for container in (*pod["initContainers"], *pod["containers"]):
        assert mount in container["volumeMounts"]
    config = fetch_config(pod)
    assert [(item.folder, item.in_cache) for item in config.items] == [("base", True), ("router", False)]
    assert config.cache is None
    assert config.image is not None
    assert (config.image.reference, config.image.path) == (IMAGE, "/mnt/model-cache")


def test_a_fully_fine_tuned_model_can_have_an_image() -> None:
    cluster = with_images({digest("1"): IMAGE, BASE: OTHER}, checkpoint("first", "1", type="Full"))

    pod = pod_of(cluster)
    assert [each["image"]["reference"] for each in volumes(pod)] == [IMAGE]
    assert [(item.folder, item.in_cache) for item in fetch_config(pod).items] == [("router", True)]


def test_a_model_without_an_image_is_copied_as_without_a_cache() -> None:
    plain = EndpointCluster(checkpoint("first", "1"))
    plain.settle()
    cluster = with_images({digest("d"): OTHER})

    assert set(cluster.deployments) == set(plain.deployments), "the name of the revision is the same"
    assert "model-image" not in str(pod_of(cluster))
    assert not any(item.in_cache for item in fetch_config(pod_of(cluster)).items)


def test_merged_weights_are_copied() -> None:
    models = [{"name": "router", "follow": {"modelLine": "tickets"}, "merge": True}]
    cluster = with_images({BASE: IMAGE, digest("1"): OTHER}, models=models)
    cluster.cluster.end("merge", MergedWeights(weights=digest("e"), probe=digest("f")).to_json())
    cluster.settle()

    assert volumes(pod_of(cluster)) == []


def test_only_another_image_of_its_own_model_starts_a_new_revision() -> None:
    cluster = with_images({BASE: IMAGE})
    (first,) = cluster.deployments
    cluster.make_ready(first)
    cluster.settle()

    def change(images: dict[str, str]) -> set[str]:
        listed = [{"model": model, "reference": reference} for model, reference in images.items()]
        cluster.put(profile(serving={"modelCache": {"images": listed}}))
        cluster.settle()
        return set(cluster.deployments) - {first}

    assert change({BASE: IMAGE, digest("d"): OTHER}) == set()
    assert len(change({BASE: OTHER})) == 1
