# SPDX-License-Identifier: Apache-2.0
"""A run in two pods on a real Job controller: which failures count, and which pods are replaced."""

import json
from base64 import b64decode

from finetune_operator.observe.pod_status import index_of
from finetune_trainer.contract.vocabulary import ExitCode
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import condition
from tests.integration.operators import Operators
from tests.waiting import eventually

PATIENCE_SECONDS = 60.0
"""The Job controller waits ten seconds before it replaces a failed pod."""


def train_pods(api: Api, namespace: str, *others: str) -> dict[int | None, Object]:
    """Running pods of the train stage by index; `others` are the uids of pods to ignore."""
    return {
        index_of(pod): pod
        for pod in api.list("Pod", namespace)
        if pod["metadata"]["labels"].get("finetune.dev/stage") == "train"
        and pod["metadata"]["uid"] not in others
        and pod["status"]["phase"] == "Running"
    }


def end(api: Api, pod: Object, code: int) -> None:
    """Status of a pod whose container ended with this exit code."""
    status, metadata = pod["status"], pod["metadata"]
    (container,) = status["containerStatuses"]
    started = container["state"]["running"]["startedAt"]
    terminated = {"exitCode": code, "reason": "Error", "startedAt": started, "finishedAt": started}
    ended = {**container, "ready": False, "state": {"terminated": terminated}}
    body = {"status": {**status, "phase": "Failed", "containerStatuses": [ended]}}
    api.patch("Pod", metadata["namespace"], metadata["name"], body, "status")


def test_a_pod_that_lost_another_one_is_followed_and_only_the_other_one_counts(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    kubelet.held.add("train")
    compute = {"profile": manifests.profile_name(namespace), "nodes": 2}
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace, compute=compute))

    def reconciling() -> Object:
        return condition(api.get("FineTuneJob", namespace, "routing"), "Reconciling")

    eventually(
        "both pods train",
        lambda: reconciling().get("reason") == "Training",
        PATIENCE_SECONDS,
        describe=lambda: f"{reconciling()}\n{operator.log[-4000:]}",
    )
    first = train_pods(api, namespace)
    assert first.keys() == {0, 1}
    (job,) = jobs_of_stage(api, namespace, "train")
    (service,) = api.list("Service", namespace)
    for index, pod in first.items():
        spec = pod["spec"]
        assert spec["hostname"] == f"{job['metadata']['name']}-{index}"
        assert spec["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()

    end(api, first[1], 137)
    end(api, first[0], ExitCode.PEER_LOST)

    gone = tuple(pod["metadata"]["uid"] for pod in first.values())
    eventually(
        "two other pods run",
        lambda: train_pods(api, namespace, *gone).keys() == {0, 1},
        PATIENCE_SECONDS,
        describe=lambda: f"{api.list('Pod', namespace)}\n{operator.log[-4000:]}",
    )
    (again,) = jobs_of_stage(api, namespace, "train")
    assert again["metadata"]["uid"] == job["metadata"]["uid"]
    assert again["status"]["failed"] == 1
    kubelet.held.clear()
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert len(api.list("Service", namespace)) == 1


def test_a_run_in_two_pods_has_a_key_that_only_its_pods_see_and_keeps_it(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operators.start().wait_active()
    kubelet.held.add("train")
    compute = {"profile": manifests.profile_name(namespace), "nodes": 2}
    api.create(manifests.dataset(namespace))
    run = api.create(manifests.finetunejob(namespace, compute=compute))
    first = eventually("two pods", lambda: _both(api, namespace), PATIENCE_SECONDS)
    (key,) = _keys(api, namespace)

    api.patch("FineTuneJob", namespace, "routing", {"spec": {"suspend": True}})
    eventually("no Job", lambda: not jobs_of_stage(api, namespace, "train"), PATIENCE_SECONDS)
    api.patch("FineTuneJob", namespace, "routing", {"spec": {"suspend": False}})
    second = eventually(
        "two others",
        lambda: _both(api, namespace, *(pod["metadata"]["uid"] for pod in first)),
        PATIENCE_SECONDS,
    )

    assert _keys(api, namespace) == [key]
    assert key["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]
    assert len(b64decode(key["data"]["key"])) == 32
    for pod in (*first, *second):
        mounted = [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume]
        assert key["metadata"]["name"] in mounted
        assert key["data"]["key"] not in json.dumps(pod)


def _both(api: Api, namespace: str, *others: str) -> list[Object] | None:
    pods = train_pods(api, namespace, *others)
    return list(pods.values()) if len(pods) == 2 else None


def _keys(api: Api, namespace: str) -> list[Object]:
    return [each for each in api.list("Secret", namespace) if each["metadata"]["name"].startswith("train-")]
