# SPDX-License-Identifier: Apache-2.0
"""Analyses of rollouts: which Job measures a revision, and what each verdict does."""

from typing import Any

import pytest

from finetune_operator.api.labels import RUN
from finetune_operator.engine.resources import POD
from finetune_operator.manifests.revision import Revision
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.targets import resolve, wanted_revision
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from finetune_trainer.contract.analysis import AnalysisFigure, AnalysisVerdict, AnalyzeResult
from finetune_trainer.contract.configs import CONFIG_ADAPTER, AnalyzeConfig
from finetune_trainer.contract.results import StageResult
from tests.unit.operator.endpoints import EndpointCluster, checkpoint, digest, rolling, serving_pod, states
from tests.unit.operator.goldencases import GOLDEN, base_objects
from tests.unit.operator.test_endpoint_canary import make_ready, replicas, step, weights

STEPS: list[Manifest] = [{"setWeight": 20}, {"analysis": {}}, {"setWeight": 60}, {"pause": {"seconds": 60}}]
GATES: list[Manifest] = [
    {"metric": "error_rate", "max": 0.05, "maxIncrease": 0.02},
    {"metric": "time_to_first_token_seconds", "maxRatio": 1.5},
]
ANALYSIS: Manifest = {"gates": GATES, "durationSeconds": 60, "maxDurationSeconds": 600, "minRequests": 50}
CANARY: Manifest = {"type": "Canary", "canary": {"steps": STEPS}, "analysis": ANALYSIS}
FIGURES: dict[AnalysisVerdict, tuple[AnalysisFigure, ...]] = {
    "Pass": (
        AnalysisFigure(metric="error_rate", value=0, low=0, high=0.03, stable=0, verdict="Pass"),
        AnalysisFigure(
            metric="time_to_first_token_seconds", quantile=0.95, value=0.2, stable=0.2, verdict="Pass"
        ),
    ),
    "Fail": (
        AnalysisFigure(metric="error_rate", value=0.3, low=0.21, high=0.4, stable=0.01, verdict="Fail"),
        AnalysisFigure(
            metric="time_to_first_token_seconds", quantile=0.95, value=0.2, stable=0.2, verdict="Pass"
        ),
    ),
    "Inconclusive": (
        AnalysisFigure(metric="error_rate", value=0, low=0, high=0.6, stable=0, verdict="Inconclusive"),
        AnalysisFigure(metric="time_to_first_token_seconds", quantile=0.95, verdict="Inconclusive"),
    ),
}


def ready_pod(revision: str, address: str, **spec: Any) -> Manifest:
    pod = serving_pod(
        revision, f"{revision}-{address[-1]}", podIP=address, conditions=[{"type": "Ready", "status": "True"}]
    )
    return pod | {"spec": {**pod["spec"], **spec}}


def measured(**strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is being analyzed; the old revision and the new one."""
    cluster, old, new = rolling(strategy={**CANARY, **strategy}, replicas=5)
    cluster.put(ready_pod(old, "10.0.0.1"), ready_pod(old, "10.0.0.2"), ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    return cluster, old, new


def jobs(cluster: EndpointCluster) -> list[str]:
    return sorted(cluster.cluster.of("Job"))


def config_of(cluster: EndpointCluster, job: str) -> AnalyzeConfig:
    (container,) = cluster.cluster.objects["Job", job]["spec"]["template"]["spec"]["containers"]
    config = CONFIG_ADAPTER.validate_json(container["env"][0]["value"])
    assert isinstance(config, AnalyzeConfig)
    return config


def result_of(config: AnalyzeConfig, verdict: AnalysisVerdict) -> StageResult:
    figures = FIGURES[verdict]
    found = AnalyzeResult(verdict=verdict, figures=figures, requests=120, stable_requests=480, seconds=60)
    return config.bind(StageResult(stage="analyze", run=config.run, outcome="Succeeded", analyze=found))


def end(cluster: EndpointCluster, job: str, message: str, how: str = "Complete") -> None:
    """Let the Job end as the Job controller and the kubelet do."""
    manifest = cluster.cluster.objects["Job", job]
    since = cluster.cluster.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest["status"] = {"conditions": [{"type": how, "status": "True", "lastTransitionTime": since}]}
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    owner = {"kind": "Job", "name": job, "uid": manifest["metadata"]["uid"], "controller": True}
    code = 0 if how == "Complete" else 1
    ended = {"terminated": {"exitCode": code, "message": message, "startedAt": since, "finishedAt": since}}
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{job}-pod", "labels": dict(labels), "ownerReferences": [owner]},
            "spec": {"nodeName": "node-1"},
            "status": {
                "phase": "Succeeded" if code == 0 else "Failed",
                "containerStatuses": [{"name": "trainer", "state": ended}],
            },
        }
    )


def finish(cluster: EndpointCluster, verdict: AnalysisVerdict) -> None:
    (job,) = jobs(cluster)
    end(cluster, job, result_of(config_of(cluster, job), verdict).to_json())
    cluster.settle()


def analysis(cluster: EndpointCluster, revision: str) -> Manifest:
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == revision]
    assert entry.analysis is not None
    return entry.analysis.model_dump(exclude_none=True)


def test_the_job_of_a_step_measures_the_pods_of_both_revisions() -> None:
    cluster, old, new = measured()
    assert step(cluster, new) == 1
    assert weights(cluster) == {old: 80, new: 20}
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    assert config.pods == ("http://10.0.0.3:8000/metrics",)
    assert config.stable_pods == ("http://10.0.0.1:8000/metrics", "http://10.0.0.2:8000/metrics")
    assert (config.baseline, config.whole_duration) == ("Concurrent", False)
    assert (config.duration_seconds, config.max_duration_seconds, config.min_requests) == (60, 600, 50)
    assert [gate.metric for gate in config.gates] == [gate["metric"] for gate in GATES]
    reason, message = cluster.condition("Reconciling") or ("", "")
    assert reason == "Canary"
    assert "step 2 of 4" in message


def test_the_pod_of_an_analysis_has_no_label_that_services_select_and_uses_no_device_or_queue() -> None:
    cluster, _, _ = measured()
    (job,) = jobs(cluster)
    manifest = cluster.cluster.objects["Job", job]
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    selector = cluster.services["desk"]["spec"]["selector"]
    assert RUN in selector
    assert not selector.items() <= labels.items()
    assert labels["finetune.dev/analyzed"] == "endpoint-uid"
    assert not {key for key in manifest["metadata"]["labels"] if "kueue" in key}
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "384Mi"}


def test_metrics_of_vllm_are_read_on_their_own_port_and_an_ipv6_address_has_brackets() -> None:
    cluster, old, new = rolling(strategy=CANARY, replicas=5)
    engine = {"name": "engine", "ports": [{"name": "metrics", "containerPort": 9090}]}
    cluster.put(ready_pod(new, "fd00::3", containers=[engine]), ready_pod(old, "10.0.0.1"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    assert config_of(cluster, job).pods == ("http://[fd00::3]:9090/metrics",)


def test_a_step_that_passed_is_followed_by_the_next_one_and_the_figures_stay() -> None:
    cluster, old, new = measured()
    finish(cluster, "Pass")
    make_ready(cluster)
    assert step(cluster, new) == 3
    assert weights(cluster) == {old: 40, new: 60}
    assert jobs(cluster) == [], "the Job of a step that has ended is removed"
    found = analysis(cluster, new)
    assert (found["verdict"], found["step"], found["requests"]) == ("Pass", 1, 120)
    cluster.wait(60)
    make_ready(cluster)
    make_ready(cluster)
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert analysis(cluster, new) == found
    cluster.put(checkpoint("third", "3", promoted=20))
    cluster.edit(strategy={"type": "RollingUpdate"})
    cluster.settle()
    make_ready(cluster)
    assert states(cluster)[new] == "Retired"
    assert analysis(cluster, new) == found, "in the history"


def test_a_failed_analysis_returns_all_requests_with_its_figures_and_is_not_tried_again() -> None:
    cluster, old, new = measured()
    cluster.log.clear()
    finish(cluster, "Fail")
    assert (replicas(cluster), cluster.points_at) == ({old: 5}, old)
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    reason, message = cluster.condition("Stalled") or ("", "")
    assert reason == "RolledBack"
    figures = "error_rate 0.3 (at least 0.21; max 0.05; stable 0.01 + 0.02)"
    assert f"its analysis failed after 120 requests, and 480 of the stable revision: {figures};" in message
    (event,) = [each for each in cluster.cluster.events if each.reason == "RolledBack"]
    assert figures in event.message
    assert analysis(cluster, new)["figures"][0]["low"] == 0.21
    (entry,) = [each for each in cluster.endpoint.status.revisions if each.name == new]
    assert entry.verdict is not None
    assert entry.verdict.result == "Failed"
    assert cluster.log.index("apply Service desk") < cluster.log.index(f"delete {new}")
    assert jobs(cluster) == []
    cluster.wait(3600)
    cluster.settle()
    assert set(cluster.deployments) == {old}


def test_a_person_can_have_a_failed_revision_tried_again_and_it_is_measured_again() -> None:
    cluster, _, new = measured()
    (first,) = jobs(cluster)
    finish(cluster, "Fail")
    cluster.wait(5)
    decision = {"revision": new, "verdict": "Promote"}
    cluster.edit(strategy={**CANARY, "decision": decision})
    cluster.settle()
    make_ready(cluster)
    assert states(cluster)[new] == "Canary"
    (second,) = jobs(cluster)
    assert second != first


@pytest.mark.parametrize("verdict", ["Promote", "Abort"])
def test_an_inconclusive_analysis_keeps_the_weight_until_a_person_decides(verdict: str) -> None:
    cluster, old, new = measured()
    finish(cluster, "Inconclusive")
    reason, message = cluster.condition("Suspended") or ("", "")
    assert reason == "AwaitingDecision"
    assert "keeps 20 % of the requests, because its analysis was inconclusive after 120 requests" in message
    assert "time_to_first_token_seconds p95 unknown" in message
    assert cluster.condition("Reconciling") is None
    assert (weights(cluster), step(cluster, new)) == ({old: 80, new: 20}, 1)
    assert analysis(cluster, new)["verdict"] == "Inconclusive"
    before = jobs(cluster)
    cluster.wait(3600)
    cluster.settle()
    assert jobs(cluster) == before, "it is not measured again by itself"
    cluster.edit(strategy={**CANARY, "decision": {"revision": new, "verdict": verdict}})
    cluster.settle()
    make_ready(cluster)
    assert cluster.points_at == (new if verdict == "Promote" else old)


def test_continue_takes_the_step_after_an_inconclusive_analysis() -> None:
    cluster, old, new = measured()
    decision = {"revision": new, "verdict": "Continue"}
    cluster.edit(strategy={**CANARY, "decision": decision})
    cluster.settle()
    assert step(cluster, new) == 1, "an analysis that is running is not ended"
    finish(cluster, "Inconclusive")
    assert step(cluster, new) == 1
    cluster.edit(strategy={**CANARY, "decision": {**decision, "generation": 2}})
    make_ready(cluster)
    assert (weights(cluster), step(cluster, new)) == ({old: 40, new: 60}, 3)


def test_other_gates_measure_again() -> None:
    cluster, _, new = measured()
    finish(cluster, "Inconclusive")
    (before,) = jobs(cluster)
    cluster.edit(strategy={**CANARY, "analysis": {**ANALYSIS, "minRequests": 5}})
    cluster.settle()
    (after,) = jobs(cluster)
    assert after != before
    assert config_of(cluster, after).min_requests == 5
    assert states(cluster)[new] == "Canary"


def test_an_analysis_that_cannot_run_asks_a_person() -> None:
    cluster, _, _ = measured()
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    failed = StageResult(
        stage="analyze", run=config.run, outcome="Failed", reason="InvalidConfig", message="no"
    )
    end(cluster, job, config.bind(failed).to_json(), "Failed")
    cluster.settle()
    reason, message = cluster.condition("Suspended") or ("", "")
    assert (reason, "because its analysis could not run: no" in message) == ("AwaitingDecision", True)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "another-uid"},
        {"stage": "score"},
        {"nonce": "guessed"},
        {"config_digest": "0" * 64},
    ],
)
def test_a_result_that_is_not_of_this_job_does_not_count(change: dict[str, str]) -> None:
    cluster, old, new = measured()
    (job,) = jobs(cluster)
    forged = result_of(config_of(cluster, job), "Fail").model_copy(update=change)
    end(cluster, job, forged.to_json())
    cluster.settle()
    assert states(cluster)[new] == "Canary"
    assert weights(cluster) == {old: 80, new: 20}
    assert (cluster.condition("Suspended") or ("", ""))[0] == "AwaitingDecision"


def test_the_result_of_an_earlier_step_does_not_count_for_a_later_one() -> None:
    steps = [{"setWeight": 20}, {"analysis": {}}, {"analysis": {"durationSeconds": 30}}, {"setWeight": 60}]
    cluster, _, new = measured(canary={"steps": steps})
    (first,) = jobs(cluster)
    stale = result_of(config_of(cluster, first), "Pass").to_json()
    finish(cluster, "Pass")
    assert step(cluster, new) == 2
    (second,) = jobs(cluster)
    assert config_of(cluster, second).duration_seconds == 30
    end(cluster, second, stale)
    cluster.settle()
    assert step(cluster, new) == 2
    assert (cluster.condition("Suspended") or ("", ""))[0] == "AwaitingDecision"


def test_an_operator_that_was_killed_before_it_wrote_the_status_comes_to_the_same_end() -> None:
    cluster, old, new = measured()
    (job,) = jobs(cluster)
    end(cluster, job, result_of(config_of(cluster, job), "Fail").to_json())
    plan = cluster.cluster.plan("InferenceDeployment", "desk")
    cluster.cluster.carry_out("InferenceDeployment", "desk", plan, crash_before_status=True)
    assert cluster.points_at == old
    cluster.settle()
    assert replicas(cluster) == {old: 5}
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    assert analysis(cluster, new)["verdict"] == "Fail"


def test_a_result_that_is_read_again_changes_nothing() -> None:
    cluster, _, _ = measured()
    finish(cluster, "Inconclusive")
    before = cluster.endpoint.status
    cluster.reconcile()
    assert cluster.endpoint.status == before


def test_a_lost_result_is_measured_again() -> None:
    cluster, _, new = measured()
    (job,) = jobs(cluster)
    end(cluster, job, "")
    del cluster.pods[f"{job}-pod"]
    plan = cluster.reconcile()
    assert plan.requeue_after == 11
    cluster.wait(11)
    cluster.reconcile()
    assert jobs(cluster) == []
    cluster.settle()
    assert jobs(cluster) == [job]
    assert states(cluster)[new] == "Canary"


def test_a_job_of_someone_else_with_the_name_does_not_decide() -> None:
    cluster, _, new = measured()
    (job,) = jobs(cluster)
    del cluster.cluster.objects["Job", job]["metadata"]["annotations"]["finetune.dev/nonce"]
    cluster.settle()
    assert states(cluster)[new] == "Canary"
    _, message = cluster.condition("Suspended") or ("", "")
    assert "the operator did not create it" in message


def test_an_analysis_waits_for_a_pod_that_only_the_deployment_reports_as_ready() -> None:
    cluster, old, new = rolling(strategy=CANARY, replicas=5)
    cluster.put(ready_pod(old, "10.0.0.1"))
    make_ready(cluster)
    assert (step(cluster, new), jobs(cluster)) == (1, [])
    _, message = cluster.condition("Reconciling") or ("", "")
    assert "its analysis starts when its pods are ready" in message
    cluster.put(ready_pod(new, "10.0.0.3"))
    cluster.settle()
    (job,) = jobs(cluster)
    assert config_of(cluster, job).pods == ("http://10.0.0.3:8000/metrics",)


def test_a_pause_starts_no_analysis_and_a_failed_one_ends_the_canary_in_a_pause() -> None:
    cluster, old, new = measured()
    (job,) = jobs(cluster)
    cluster.edit(strategy={**CANARY, "paused": True})
    cluster.settle()
    assert jobs(cluster) == [job]
    finish(cluster, "Fail")
    assert states(cluster) == {new: "RolledBack", old: "Live"}


def baking(**strategy: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision bakes and is analyzed."""
    cluster, old, new = rolling(strategy={"bakeSeconds": 300, "analysis": ANALYSIS, **strategy})
    cluster.put(ready_pod(old, "10.0.0.1"), ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    assert states(cluster) == {new: "Baking", old: "Standby"}
    return cluster, old, new


def test_a_bake_is_measured_to_its_end_and_compared_with_the_past() -> None:
    cluster, _, _ = baking()
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    assert (config.baseline, config.whole_duration) == ("Past", True)
    assert (config.duration_seconds, config.max_duration_seconds) == (60, 300)
    assert config.stable_pods == ("http://10.0.0.1:8000/metrics",)
    assert (cluster.condition("Ready") or ("", ""))[0] == "Baking"


def test_a_regression_after_the_promotion_returns_the_requests() -> None:
    cluster, old, new = baking()
    assert cluster.points_at == new
    cluster.wait(40)
    finish(cluster, "Fail")
    assert cluster.points_at == old
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    _, message = cluster.condition("Stalled") or ("", "")
    assert "its analysis failed after 120 requests" in message
    assert cluster.endpoint.status.models[0].checkpoint == "first"


@pytest.mark.parametrize("verdict", ["Pass", "Inconclusive"])
def test_a_bake_ends_when_its_time_is_over_and_its_analysis_has_ended(verdict: AnalysisVerdict) -> None:
    cluster, old, new = baking()
    cluster.wait(300)
    plan = cluster.reconcile()
    assert states(cluster) == {new: "Baking", old: "Standby"}
    assert plan.requeue_after == 600
    finish(cluster, verdict)
    assert states(cluster) == {new: "Live", old: "Retired"}
    assert analysis(cluster, new)["verdict"] == verdict


def test_an_analysis_that_does_not_run_prolongs_a_bake_by_the_deadline_only() -> None:
    cluster, old, new = baking()
    cluster.wait(300 + 600)
    cluster.settle()
    assert states(cluster) == {new: "Live", old: "Retired"}


def with_dataset(cluster: EndpointCluster, *stores: str) -> None:
    """Add the DatasetVersion that the Checkpoints were trained on, in these stores."""
    record = base_objects(GOLDEN / "base" / "dataset.yaml")["DatasetVersion/tickets-dddddddddddd"]
    metadata = {**record["metadata"], "name": "rows-1", "uid": "rows-uid"}
    cluster.put({**record, "metadata": metadata, "status": {**record["status"], "locations": list(stores)}})


PROBED: Manifest = {**ANALYSIS, "probe": {"requests": 80}}


def test_probes_are_the_test_rows_of_the_checkpoint_and_need_store_and_keys() -> None:
    cluster, old, new = rolling(strategy={**CANARY, "analysis": PROBED}, replicas=5)
    with_dataset(cluster, "pvc://artifacts")
    cluster.edit(serving={"apiKeysSecretRef": {"name": "keys"}})
    cluster.put(ready_pod(old, "10.0.0.1"))
    cluster.settle()
    (new,) = {each.name for each in cluster.endpoint.status.revisions if each.state == "RollingOut"}
    cluster.put(ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    assert config.probe is not None
    assert config.probe.requests == 80
    (model,) = config.probe.models
    assert (model.name, model.dataset, model.is_new) == ("router", digest("d"), False)
    assert config.probe.pods == ("http://10.0.0.3:8000/v1",)
    assert config.probe.stable_pods == ("http://10.0.0.1:8000/v1",)
    assert config.probe.api_keys_path == "/var/run/finetune/api-keys"
    assert (config.store.uri, config.store.path) == ("pvc://artifacts", "/mnt/store")
    spec = cluster.cluster.objects["Job", job]["spec"]["template"]["spec"]
    mounts = {each["mountPath"]: each.get("readOnly") for each in spec["containers"][0]["volumeMounts"]}
    assert mounts == {"/mnt/store": True, "/tmp": None, "/var/run/finetune/api-keys": True}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["store"]["persistentVolumeClaim"] == {"claimName": "artifacts"}
    assert volumes["api-keys"]["secret"] == {"secretName": "keys"}


@pytest.mark.parametrize("stores", [(), ("s3://elsewhere",)])
def test_rows_that_are_not_in_the_store_of_the_revision_are_not_sent(stores: tuple[str, ...]) -> None:
    cluster, _, new = rolling(strategy={**CANARY, "analysis": PROBED}, replicas=5)
    with_dataset(cluster, *stores)
    cluster.put(ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    probe = config_of(cluster, job).probe
    assert probe is not None
    assert [(each.name, each.dataset) for each in probe.models] == [("router", None)]


ANSWERED: Manifest = {
    **PROBED,
    "probe": {"requests": 80, "minRows": 30},
    "gates": [{"metric": "exact_match", "min": 0.8, "maxDecrease": 0.05}],
}


def answering(**spec: Any) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose second revision is being analyzed by its answers."""
    cluster, old, new = rolling(strategy={**CANARY, "analysis": ANSWERED}, replicas=5, **spec)
    return cluster, old, new


def test_rows_are_those_of_the_stable_model_so_that_wrong_rows_do_not_justify_what_they_taught() -> None:
    cluster, old, new = answering()
    with_dataset(cluster, "pvc://artifacts")
    shuffled = base_objects(GOLDEN / "base" / "dataset.yaml")["DatasetVersion/tickets-dddddddddddd"]
    metadata = {**shuffled["metadata"], "name": "shuffled", "uid": "shuffled-uid"}
    spec = {**shuffled["spec"], "digest": digest("e")}
    locations = {**shuffled["status"], "locations": ["pvc://artifacts"]}
    cluster.put({**shuffled, "metadata": metadata, "spec": spec, "status": locations})
    second = checkpoint("second", "2", promoted=10).to_dict()
    second["spec"]["lineage"]["datasetVersion"] = "shuffled"
    cluster.put(second, ready_pod(old, "10.0.0.1"), ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    probe = config_of(cluster, job).probe
    assert probe is not None
    assert [each.dataset for each in probe.models] == [digest("d")]


def test_pods_are_recognized_by_the_digests_in_their_configs() -> None:
    cluster, old, new = answering()
    with_dataset(cluster, "pvc://artifacts")
    cluster.put(ready_pod(old, "10.0.0.1"), ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    probe = config_of(cluster, job).probe
    assert probe is not None
    assert probe.min_rows == 30
    assert set(probe.digests) == {digest("2"), digest("b")}
    assert set(probe.stable_digests) == {digest("1"), digest("b")}


def test_a_worse_model_is_rolled_back_and_its_score_and_that_of_the_stable_one_say_why() -> None:
    cluster, old, new = answering()
    with_dataset(cluster, "pvc://artifacts")
    cluster.put(ready_pod(old, "10.0.0.1"), ready_pod(new, "10.0.0.3"))
    make_ready(cluster)
    (job,) = jobs(cluster)
    config = config_of(cluster, job)
    figure = AnalysisFigure(
        metric="exact_match",
        model="router",
        rows=40,
        value=0.3,
        low=0.15,
        high=0.49,
        stable=0.95,
        verdict="Fail",
    )
    found = AnalyzeResult(verdict="Fail", figures=(figure,), requests=40, stable_requests=40)
    result = StageResult(stage="analyze", run=config.run, outcome="Succeeded", analyze=found)
    end(cluster, job, config.bind(result).to_json())
    cluster.settle()
    assert states(cluster) == {new: "RolledBack", old: "Live"}
    _, message = cluster.condition("Stalled") or ("", "")
    figures = "exact_match of router 0.3 (at most 0.49; 40 rows; min 0.8; stable 0.95 - 0.05)"
    assert figures in message
    shown = analysis(cluster, new)["figures"][0]
    assert (shown["model"], shown["rows"], shown["stable"]) == ("router", 40, 0.95)


def test_without_probes_the_pod_mounts_neither_store_nor_keys() -> None:
    cluster, _, _ = measured()
    (job,) = jobs(cluster)
    assert config_of(cluster, job).probe is None
    volumes = cluster.cluster.objects["Job", job]["spec"]["template"]["spec"]["volumes"]
    assert volumes == [
        {"name": "store", "emptyDir": {}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "100Gi"}},
    ]


def test_a_policy_lets_the_analysis_connect_and_stays_as_it_was_without_one() -> None:
    cluster, _, _ = measured()
    cluster.edit(networkPolicy={"allowFrom": [{"podSelector": {}}]})
    cluster.settle()
    (policy,) = cluster.network_policies.values()
    allowed = {"podSelector": {"matchLabels": {"finetune.dev/analyzed": "endpoint-uid"}}}
    ports = [{"port": 8000, "protocol": "TCP"}, {"port": 9090, "protocol": "TCP"}]
    assert policy["spec"]["ingress"][2] == {"from": [allowed], "ports": ports}
    cluster.edit(strategy={"type": "RollingUpdate"})
    cluster.settle()
    (policy,) = cluster.network_policies.values()
    assert len(policy["spec"]["ingress"]) == 2


def test_the_pod_of_an_analysis_has_no_room_that_a_recreated_revision_waits_for() -> None:
    cluster, _, _ = measured()
    (job,) = jobs(cluster)
    end(cluster, job, "")
    cluster.pods[f"{job}-pod"]["status"] = {"phase": "Running"}
    for name in [name for name in cluster.pods if not name.startswith(job)]:
        del cluster.pods[name]
    snapshot = cluster.snapshot()
    assert [pod["metadata"]["name"] for pod in snapshot.children[POD].values()] == [f"{job}-pod"]
    targets = resolve(cluster.endpoint, snapshot.checkpoints)
    wanted = wanted_revision(cluster.endpoint, targets, snapshot)
    assert isinstance(wanted, Revision)
    assert not RolloutContext(cluster.endpoint, snapshot, targets, wanted).has_other_pods
