# SPDX-License-Identifier: Apache-2.0
"""The report endpoint of a running operator, with requests like those of a train pod."""

import base64

import pytest

from finetune_trainer.contract.environment import REPORT_AUDIENCE
from finetune_trainer.contract.references import Owner
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.operators import Operator, Operators
from tests.integration.trainingpod import TrainingPod
from tests.waiting import eventually

POD_IP = "10.20.30.40"


@pytest.fixture
def kubelet(kubelet: FakeKubelet) -> FakeKubelet:
    kubelet.held.add("train")
    return kubelet


@pytest.fixture
def operator(operators: Operators) -> Operator:
    return operators.start(POD_IP=POD_IP).wait_active()


@pytest.fixture
def pod(api: Api, namespace: str, kubelet: FakeKubelet, operator: Operator) -> TrainingPod:
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    return TrainingPod(api, namespace, operator)


def test_progress_reaches_status_and_metrics_and_only_the_pods_own_run(
    api: Api, namespace: str, kubelet: FakeKubelet, operator: Operator, pod: TrainingPod
) -> None:
    assert pod.post(pod.report(25).to_json()).status_code == 204

    def shown() -> Object | None:
        job = api.get("FineTuneJob", namespace, "routing")
        progress = ((job or {}).get("status") or {}).get("progress") or {}
        return progress if progress.get("step") == 25 else None

    progress = eventually("the progress is in the status", shown, 30, lambda: operator.log)
    assert (progress["stage"], progress["percent"], progress["loss"]) == ("train", 25, 1.5)
    labels = f'{{finetunejob="routing",namespace="{namespace}"}}'
    assert operator.metric(f"finetune_job_progress_ratio{labels}") == 0.25
    assert operator.metric(f"finetune_job_loss{labels}") == 1.5

    stranger = Owner(kind="FineTuneJob", namespace=namespace, name="other", uid="another-uid")
    answer = pod.post(pod.report(90, owner=stranger).to_json())
    assert answer.status_code == 403
    assert "routing" in answer.json()["error"]

    kubelet.held.clear()
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    assert operator.metric(f"finetune_job_progress_ratio{labels}") is None


def test_a_pod_of_an_evaluation_reports_for_it(
    api: Api, namespace: str, kubelet: FakeKubelet, operator: Operator
) -> None:
    kubelet.held = {"evaluate"}
    for name in ("tickets", "questions"):
        api.create(manifests.dataset(namespace, name))
    api.create(manifests.finetunejob(namespace, evaluation=None))
    run = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)
    api.create(manifests.evaluation(namespace, "last-month", run["status"]["checkpoints"][0]["name"]))
    pod = TrainingPod(api, namespace, operator, "evaluate")

    assert pod.post(pod.report(25).to_json()).status_code == 204

    def percent() -> bool:
        status = (api.get("Evaluation", namespace, "last-month") or {}).get("status", {})
        shown: bool = status.get("progress", {}).get("percent") == 25
        return shown

    eventually("the progress is in the status", percent, 30, lambda: operator.log)


def test_what_is_no_report_of_a_pod_is_refused_with_a_reason(pod: TrainingPod) -> None:
    report = pod.report(1).to_json()
    assert pod.post(report, "not-a-token").status_code == 401
    answer = pod.post(report, pod.make_token("another-audience"))
    assert answer.status_code == 401
    assert REPORT_AUDIENCE in answer.json()["error"]
    answer = pod.post(report, pod.make_token(bound=False))
    assert answer.status_code == 401
    assert "not bound to a pod" in answer.json()["error"]
    answer = pod.post('{"contract": 2, "stage": "train"}')
    assert answer.status_code == 400
    assert "owner" in answer.json()["error"]
    assert pod.post("x" * 20_000).status_code == 413


def test_a_pod_that_reports_too_often_is_slowed_down(pod: TrainingPod) -> None:
    codes = [pod.post(pod.report(step).to_json()).status_code for step in range(60)]
    assert codes[:10] == [204] * 10
    assert set(codes) == {204, 429}


def test_a_pod_of_nobodys_job_may_not_report(api: Api, namespace: str, pod: TrainingPod) -> None:
    loner = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "loner", "namespace": namespace, "labels": pod.pod["metadata"]["labels"]},
        "spec": pod.pod["spec"],
    }
    pod.pod = api.create(loner)
    answer = pod.post(pod.report(99).to_json(), pod.make_token())
    assert answer.status_code == 401
    assert "no Job controls pod" in answer.json()["error"]


def test_a_job_that_only_claims_to_belong_to_a_run_may_not_report(
    api: Api, namespace: str, pod: TrainingPod
) -> None:
    """A user who may create Jobs may set any owner reference."""
    endpoint = api.create(manifests.inferencedeployment(namespace))
    owner = {key: endpoint[key] for key in ("apiVersion", "kind")}
    owner |= {key: endpoint["metadata"][key] for key in ("name", "uid")}
    labels = {"finetune.dev/run": pod.config.owner.uid, "finetune.dev/stage": "forged"}
    template = {"metadata": {"labels": labels}, "spec": pod.pod["spec"]}
    metadata = {"name": "forged", "namespace": namespace, "ownerReferences": [{**owner, "controller": True}]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}
    api.create(job)

    def made() -> Object | None:
        pods = api.list("Pod", namespace)
        return next((p for p in pods if p["metadata"]["labels"].get("job-name") == "forged"), None)

    pod.pod = eventually("the forged Job has a pod", made, 30)
    answer = pod.post(pod.report(99).to_json(), pod.make_token())
    assert answer.status_code == 401
    assert "no run controls Job" in answer.json()["error"]


def test_the_service_leads_to_the_active_process_and_the_certificate_stays(
    api: Api, namespace: str, operators: Operators, operator: Operator
) -> None:
    def slice_addresses() -> list[str]:
        found = api.get("EndpointSlice", namespace, "finetune-operator-report-ipv4")
        return [] if found is None else found["endpoints"][0]["addresses"]

    eventually(
        "the Service leads to it", lambda: slice_addresses() == [POD_IP], describe=lambda: operator.log
    )
    secret = api.get("Secret", namespace, "finetune-operator-report-tls")
    assert secret is not None
    assert base64.b64decode(secret["data"]["ca.crt"]).startswith(b"-----BEGIN CERTIFICATE-----")
    second = operators.start("operator-1", POD_IP="10.20.30.41").wait_ready()
    assert slice_addresses() == [POD_IP]
    operator.kill()
    eventually("the other process is active", second.is_active, 30, lambda: second.log)
    eventually(
        "the Service leads to it", lambda: slice_addresses() == ["10.20.30.41"], describe=lambda: second.log
    )
    kept = api.get("Secret", namespace, "finetune-operator-report-tls")
    assert kept is not None
    assert kept["data"] == secret["data"]
