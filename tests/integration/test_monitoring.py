# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes operator, training process and model servers, and runs the documented queries.

The scrape of vLLM is a recorded one: tests/peers/recordmetrics.py.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from finetune_trainer.contract.configs import PrepareConfig, StageConfig
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from tests.docsblocks import blocks
from tests.fakekubelet import FakeKubelet
from tests.forkserver import preload
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import until_condition
from tests.integration.operators import Operator, Operators
from tests.integration.recordedscrape import RecordedScrape
from tests.integration.trainingpod import TrainingPod
from tests.prometheus import RULES, Prometheus, Target
from tests.waiting import eventually
from tools.cluster import ControlPlane, program
from tools.cluster.layout import free_port
from tools.fakepods import succeeded

if TYPE_CHECKING:
    from tests.trainer.processes import Process
    from tests.trainer.serve.endpoint import ServerProcess

preload("tests.trainer.loaded", "tests.trainer.processes")

ROOT = Path(__file__).parents[2]
DASHBOARDS = [
    json.loads(file.read_text())
    for file in sorted((ROOT / "charts" / "finetune-operator" / "dashboards").glob("*.json"))
]
QUERIES = [
    pytest.param(entry["query"], bool(entry.get("gpu")), id=entry["question"])
    for section in yaml.safe_load((ROOT / "docs" / "queries.yaml").read_text()).values()
    for entry in section
]
PANELS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for dashboard in DASHBOARDS
    for panel in dashboard["panels"]
    for target in panel.get("targets", ())
]
TEMPLATES = sorted(
    {
        variable["query"]["query"]
        for dashboard in DASHBOARDS
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
)
VARIABLES = {
    "$namespace": ".*",
    "$endpoint": ".*",
    "$profile": ".*",
    "$job": "finetune-operator",
    "$__rate_interval": "5m",
    "$__range": "1h",
}
"""Values of Grafana's variables."""

RECORDED = [
    rule["record"]
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "finetune_serve_" in rule.get("record", "")
]
VLLM_SCRAPE = ROOT / "tests" / "recording" / "vllm-0.32.txt"

SERVED_MODELS = 'finetune_serve_model_info{inferencedeployment="support"}'
NAMESPACE = "monitored"
POD_IP = "10.20.30.40"


@dataclass(frozen=True)
class Site:
    """The scrape targets and Prometheus."""

    api: Api
    prometheus: Prometheus
    processes: tuple["Process", ...]

    def answers(self, query: str) -> None:
        """Wait until the query has a result."""
        ask = self.prometheus
        # The first sample of a subquery with steps of a minute comes with the next full minute.
        seconds = 80 if ":1m]" in query else 20
        eventually(f"an answer to {query}", lambda: ask.has_data(query), seconds, lambda: ask.query(query))

    def forgets(self, query: str) -> None:
        """Wait until the query has no result any more."""
        ask = self.prometheus
        eventually(f"nothing is left of {query}", lambda: not ask.query(query), 20, lambda: ask.query(query))


def outcome(config: StageConfig) -> StageResult:
    """Every source has three problems, and the run `broken` fails."""
    result = succeeded(config)
    if config.owner.name == "broken":
        failure: dict[str, Any] = {"outcome": "Failed", "reason": FailureReason.BASE_MODEL_INVALID}
        return config.bind(StageResult(run=config.run, stage=result.stage, message="no model", **failure))
    if isinstance(config, PrepareConfig) and result.prepare is not None:
        prepared = result.prepare.model_copy(update={"problem_count": 3, "problems": ("row 7: empty",)})
        return result.model_copy(update={"prepare": prepared})
    return result


def start_training(folder: Path, port: int) -> "Process":
    """A training process of the tiny model that does not end by itself."""
    # These modules import torch, which the other tests here do not need.
    from tests.trainer.processes import start
    from tests.trainer.workbench import ROWS, Workbench

    bench = Workbench(folder)
    config = bench.train_config(dataset=bench.dataset(ROWS, ROWS[:2]), epochs=100_000, save_every_steps=20)
    return start(config.model_copy(update={"metrics_port": port}))


def start_serving(folder: Path, port: int) -> "ServerProcess":
    """A tiny model and its adapters in the layout of the init container."""
    from tests.trainer.serve.endpoint import ServerProcess
    from tests.trainer.serve.models import make_llama

    make_llama(folder)
    for fetched in folder.iterdir():
        (fetched / MANIFEST_NAME).write_bytes(Manifest.of(fetched).to_bytes())
    return ServerProcess(folder, port=port)


@pytest.fixture(scope="module")
def site(control_plane: ControlPlane, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A completed run that is served, a failed run, and a run that trains."""
    with ExitStack() as stack:
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).raise_for_status()
        operators = Operators(control_plane, NAMESPACE, tmp_path_factory.mktemp("operator"))
        stack.callback(operators.stop_all)
        operator = operators.start(POD_IP=POD_IP)
        train_port, serve_port = free_port(), free_port()
        vllm = stack.enter_context(RecordedScrape(VLLM_SCRAPE))
        targets = {
            "finetune-operator": Target(operator.http_port, {"namespace": "system", "pod": operator.name}),
            "finetune-training": Target(train_port, {"namespace": NAMESPACE, "pod": "train-0"}),
            "finetune-serving": Target(serve_port, labels_of_pod("support")),
            "finetune-serving-vllm": Target(vllm.port, labels_of_pod("desk")),
        }
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
        stack.callback(prometheus.close)
        trainer = start_training(tmp_path_factory.mktemp("train"), train_port)
        stack.callback(trainer.kill)
        server = start_serving(tmp_path_factory.mktemp("serve"), serve_port)
        stack.callback(server.close)
        eventually(
            "the operator is scraped before there is anything to count",
            lambda: prometheus.query("finetune_active == 1"),
            describe=lambda: operator.log,
        )
        kubelet = FakeKubelet(api, NAMESPACE, outcome)
        stack.callback(kubelet.close)
        run_everything(api, operator, kubelet)
        eventually("the server is ready", lambda: server.health() == 200, 240)
        eventually("it is scraped", lambda: prometheus.has_data(SERVED_MODELS))
        for model in ("base", "summaries"):
            server.openai.completions.create(model=model, prompt="The licence", max_tokens=8)
        yield Site(api, prometheus, (trainer, server.process))


def labels_of_pod(endpoint: str) -> dict[str, str]:
    """Labels of a serving pod."""
    labels = {"namespace": NAMESPACE, "pod": f"{endpoint}-0"}
    return labels | {"inferencedeployment": endpoint, "revision": f"{endpoint}-1"}


def run_everything(api: Api, operator: Operator, kubelet: FakeKubelet) -> None:
    profile = manifests.profile(manifests.profile_name(NAMESPACE))
    budget = {"period": "Month", "deviceHoursPerNamespace": 1000}
    cost = {"pricePerDeviceHour": 2.5, "currency": "EUR", "budget": budget}
    profile["spec"] = {
        "accelerator": {"resource": "nvidia.com/gpu", "product": "NVIDIA-H100-80GB-HBM3"},
        "cost": cost,
    }
    api.create(profile)
    smaller = manifests.profile("smaller")
    smaller["spec"] = {
        "accelerator": {"resource": "nvidia.com/gpu", "product": "NVIDIA-L40S"},
        "cost": {**cost, "pricePerDeviceHour": 0.5},
    }
    api.create(smaller)
    for name in ("artifacts", "models"):
        api.create(manifests.claim(NAMESPACE, name))
    api.create(manifests.dataset(NAMESPACE))
    api.create(manifests.inferencedeployment(NAMESPACE))
    # It has no revision to roll out, and the cluster has no Gateway API that could accept a route.
    routed = manifests.inferencedeployment(NAMESPACE, "routed")
    routed["spec"]["models"][0]["follow"]["modelLine"] = "none-of-this-name"
    routed["spec"]["traffic"] = {"gateway": {"parentRefs": [{"name": "public"}]}}
    api.create(routed)
    api.create(manifests.finetunejob(NAMESPACE))
    api.create(manifests.finetunejob(NAMESPACE, "broken"))
    homeless = manifests.dataset(NAMESPACE, "homeless")
    homeless["spec"]["store"] = {"uri": "pvc://nowhere"}
    api.create(homeless)
    until_condition(api, (NAMESPACE, "FineTuneJob", "routing"), "Ready", operator)
    until_condition(api, (NAMESPACE, "FineTuneJob", "broken"), "Stalled", operator)
    until_condition(api, (NAMESPACE, "InferenceDeployment", "support"), "Ready", operator)
    kubelet.held.add("train")
    api.create(manifests.finetunejob(NAMESPACE, "under-way"))
    # A Service of another owner has the endpoint's name, so its passes fail.
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken", "namespace": NAMESPACE}}
    api.create(service | {"spec": {"ports": [{"port": 80}]}})
    api.create(manifests.inferencedeployment(NAMESPACE, "taken"))
    pod = TrainingPod(api, NAMESPACE, operator)
    for step in (1, 25):
        assert pod.post(pod.report(step).to_json()).status_code == 204
    assert pod.post(pod.report(50).to_json(), "not-a-token").status_code == 401


@pytest.mark.parametrize(("query", "needs_gpu"), QUERIES)
def test_prometheus_answers_each_documented_query(site: Site, query: str, *, needs_gpu: bool) -> None:
    if needs_gpu:
        # tests/unit/test_queries.py checks its result with a GPU.
        assert site.prometheus.query(query) == []
    else:
        site.answers(query)


@pytest.mark.parametrize("query", PANELS)
def test_each_panel_of_the_dashboard_shows_something(site: Site, query: str) -> None:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    site.answers(query)


@pytest.mark.parametrize("endpoint", ["support", "desk"], ids=["Transformers", "VLLM"])
@pytest.mark.parametrize("record", RECORDED)
def test_each_recorded_series_has_a_value_with_each_engine(site: Site, record: str, endpoint: str) -> None:
    site.answers(f'{record}{{inferencedeployment="{endpoint}"}}')


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_dashboard_has_something_to_choose_from(site: Site, template: str) -> None:
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", template)
    assert asked is not None
    eventually(f"values of {template}", lambda: site.prometheus.label_values(*asked.groups()), 20)


@pytest.mark.parametrize(
    ("query", "value"),
    [
        ('finetune_job_progress_ratio{finetunejob="under-way"}', 0.25),
        ("finetune_dataset_problems", 3),
        ("sum(finetune_checkpoints_recorded_total)", 1),
        ('sum(finetune_promotions_total{result="promoted"})', 1),
        ('sum(finetune_rollouts_total{result="succeeded"})', 1),
        ('sum(finetune_rollout_verdicts_total{strategy="RollingUpdate",verdict="Passed"})', 1),
        ('finetune_rollout_duration_seconds_count{strategy="RollingUpdate",result="succeeded"}', 1),
        ('finetune_endpoint_revision_weight_ratio{inferencedeployment="support"}', 1),
        ('finetune_stage_seconds_count{stage="preflight",outcome="failed"}', 1),
        ('finetune_stage_seconds_count{stage="train",outcome="succeeded"}', 1),
        ('finetune_pods_ended_total{stage="train",cause="succeeded"}', 1),
        ('finetune_report_requests_total{code="401"}', 1),
        ("sum(finetune_report_up)", 1),
        ('finetune_blocked{kind="Dataset",reason="StoreNotFound"}', 1),
        ('finetune_endpoint_models_served{inferencedeployment="support"}', 1),
        ('finetune_endpoint_hourly_cost{inferencedeployment="support",currency="EUR"}', 2.5),
        ('finetune_devices{workload="run",state="running"}', 1),
        ("finetune_device_memory_used_ratio", 30 / 80),
        ("finetune_device_flops_used_ratio > bool 0.3", 1),
        ('finetune_devices{workload="endpoint",state="running"}', 1),
        ('sum(finetune_serve_requests_total{code="200",inferencedeployment="support"})', 2),
        ("max(resets(finetune_trainer_checkpoint_age_seconds[10m])) > bool 0", 1),
    ],
)
def test_the_figures_are_those_of_what_has_happened(site: Site, query: str, value: float) -> None:
    def values() -> list[float]:
        return [number for _, number in site.prometheus.query(query)]

    eventually(f"{query} is {value}", lambda: values() == [value], 20, values)


def test_the_commands_of_the_page_on_costs_show_what_each_team_used(
    site: Site, control_plane: ControlPlane, tmp_path: Path
) -> None:
    def cost() -> Any:
        return (site.api.get("FineTuneJob", NAMESPACE, "under-way") or {})["status"].get("cost")

    # Pods of finished stages may have ended in the second in which they started, and so cost nothing.
    eventually("the run that trains has a cost", cost)
    marked = [each for each in blocks() if each.page.name == "costs.md"]
    assert {each.marker for each in marked} == {"run by tests/integration/test_monitoring.py"}
    path = f"{program('kubectl').parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "KUBECONFIG": str(control_plane.kubeconfig), "HOME": str(tmp_path)}
    command = ["bash", "-euo", "pipefail", "-c", "".join(each.text for each in marked)]
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert re.search(rf"{NAMESPACE} +FineTuneJob +under-way +[0-9.e-]+ +[0-9.e-]+ +EUR", shown)
    assert re.search(r"support .* 1 +EUR 2\.50", shown)
    assert re.search(rf"^{NAMESPACE} [0-9.]+ device hours$", shown, re.MULTILINE)
    assert f"{NAMESPACE}/routing: this run used at most 30 of 80 GiB per device" in shown


def test_what_is_about_a_team_carries_its_namespace_and_what_is_not_the_operators(site: Site) -> None:
    (used,) = site.prometheus.query("finetune_device_seconds_total")
    assert used[0]["namespace"] == NAMESPACE
    assert used[0]["profile"] == manifests.profile_name(NAMESPACE)
    (depth,) = site.prometheus.query("finetune_queue_depth")
    assert depth[0]["namespace"] == "system"


def test_prometheus_takes_the_alert_rules_as_they_are(site: Site) -> None:
    def evaluated() -> bool:
        return all(rule["health"] == "ok" for rule in site.prometheus.rules())

    eventually("all rules were evaluated", evaluated, describe=site.prometheus.rules)
    assert len(site.prometheus.rules()) > 0


def test_series_vanish_with_their_objects_and_processes(site: Site) -> None:
    """Runs last, because it removes the objects of the other queries."""
    gone = (
        ("FineTuneJob", "under-way", 'finetune_job_progress_ratio{finetunejob="under-way"}'),
        ("Dataset", "tickets", 'finetune_dataset_problems{dataset="tickets"}'),
        ("InferenceDeployment", "support", 'finetune_endpoint_models{inferencedeployment="support"}'),
    )
    for kind, name, query in gone:
        assert site.prometheus.query(query), query
        site.api.delete(kind, NAMESPACE, name)
    for process in site.processes:
        process.kill()
    recorded = 'inferencedeployment:finetune_serve_requests_in_flight:sum{inferencedeployment="support"}'
    of_processes = ("finetune_trainer_step", SERVED_MODELS, recorded)
    for query in (*(query for _, _, query in gone), *of_processes):
        site.forgets(query)
    assert site.prometheus.query(f'finetune_jobs{{namespace="{NAMESPACE}"}}')
