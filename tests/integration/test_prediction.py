# SPDX-License-Identifier: Apache-2.0
"""Predictions of runs on a profile with GPUs, on a real API server."""

from finetune_trainer.contract.configs import TrainConfig
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import condition, profile_name
from tests.integration.operators import Operators
from tools.cluster import ControlPlane
from tools.fakepods import config_of

TOOK = "2 h 13 min, 30 GiB"


def test_a_run_says_what_it_will_take_and_the_next_one_learns_from_it(
    control_plane: ControlPlane, api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    profile = {
        "accelerator": {"resource": "nvidia.com/gpu", "product": "NVIDIA-H100-80GB-HBM3"},
        "cost": {"pricePerDeviceHour": 3, "currency": "EUR"},
    }
    api.patch("ComputeProfile", "", profile_name(namespace), {"spec": profile})
    kubelet.held.add("train")
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Preflighted", operator)
    expected = "about 2 h 24 min on one H100, 31 of 80 GiB, EUR 7.22, at an assumed 35% of the device's peak"
    assert f"predicted: {expected}; batches of 4 rows" in condition(job, "Preflighted")["message"]
    table = control_plane.kubectl.run("get", "ftj", "-o", "wide", f"--namespace={namespace}")
    assert "PREDICTED" in table
    assert "2 h 24 min, 31 of 80 GiB, EUR 7.22" in table
    narrow = control_plane.kubectl.run("get", "ftj", f"--namespace={namespace}")
    assert "PREDICTED" not in narrow
    pod = jobs_of_stage(api, namespace, "train")[0]["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    config = config_of({"spec": pod})
    assert isinstance(config, TrainConfig)
    assert config.accelerators == 1

    kubelet.held.clear()
    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    measured = job["status"]["prediction"]["measured"]
    assert measured["mfu"] == 0.3792
    table = control_plane.kubectl.run("get", "ftj", "-o", "wide", f"--namespace={namespace}")
    print(table)
    assert TOOK in table
    assert f"took {TOOK}" in condition(job, "Trained")["message"]

    api.create(manifests.finetunejob(namespace, "routing-v2"))
    job = until_condition(api, (namespace, "FineTuneJob", "routing-v2"), "Preflighted", operator)
    prediction = job["status"]["prediction"]
    assert (prediction["mfu"], prediction.get("mfuAssumed", False)) == (0.3792, False)
    assert "on one H100, 31 of 80 GiB, EUR 6.67;" in condition(job, "Preflighted")["message"]
