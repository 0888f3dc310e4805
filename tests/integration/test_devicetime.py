# SPDX-License-Identifier: Apache-2.0
"""Device time of runs whose pods end early, in their status and in the counters of a restarted operator."""

from datetime import datetime, timedelta

from finetune_operator.observe.pod_status import parse_time
from finetune_trainer.contract.configs import StageConfig
from finetune_trainer.contract.results import RepeatedTraining, StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api, Object
from tests.integration.chain import until_condition
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually
from tools.fakepods import config_of, succeeded

PATIENCE_SECONDS = 60.0
"""The Job controller waits ten seconds before it replaces a failed pod."""
PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


def running_pod(api: Api, namespace: str, *others: str) -> Object:
    """The running train pod; `others` are the uids of earlier ones."""

    def found() -> Object | None:
        return next(
            (
                pod
                for pod in api.list("Pod", namespace)
                if pod["metadata"]["labels"].get("finetune.dev/stage") == "train"
                and pod["metadata"]["uid"] not in others
                and pod["status"]["phase"] == "Running"
            ),
            None,
        )

    return eventually("a train pod runs", found, PATIENCE_SECONDS)


def end(api: Api, pod: Object, code: int, seconds: int, message: str = "", *conditions: Object) -> None:
    """Let the container of a pod that was scheduled ten seconds before its start end after these seconds."""
    status, metadata = pod["status"], pod["metadata"]
    (container,) = status["containerStatuses"]
    started = parse_time(container["state"]["running"]["startedAt"])
    scheduled = {
        "type": "PodScheduled",
        "status": "True",
        "lastTransitionTime": stamp(started - timedelta(seconds=10)),
    }
    terminated = {
        "exitCode": code,
        "reason": "Error" if code else "Completed",
        "message": message,
        "startedAt": stamp(started),
        "finishedAt": stamp(started + timedelta(seconds=seconds)),
    }
    ended = {**container, "ready": False, "state": {"terminated": terminated}}
    body = {
        **status,
        "phase": "Failed" if code else "Succeeded",
        "conditions": [scheduled, *conditions],
        "containerStatuses": [ended],
    }
    api.patch("Pod", metadata["namespace"], metadata["name"], {"status": body}, "status")


def stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def ended_at(pod: Object, seconds: int) -> float:
    (container,) = pod["status"]["containerStatuses"]
    return parse_time(container["state"]["running"]["startedAt"]).timestamp() + seconds


def run_in(api: Api, namespace: str) -> Object:
    run = api.get("FineTuneJob", namespace, "routing")
    assert run is not None
    return run


def lost(run: Object) -> dict[str, float]:
    cost = run["status"].get("cost", {})
    return {each["cause"]: each["deviceSeconds"] for each in cost.get("lost", ())}


def counted(operator: Operator, counter: str, namespace: str, **labels: str) -> float | None:
    names = {**labels, "namespace": namespace, "profile": manifests.profile_name(namespace)}
    text = ",".join(f'{label}="{names[label]}"' for label in sorted(names))
    return operator.metric(f"finetune_{counter}_total{{{text}}}")


def config(pod: Object) -> StageConfig:
    found = config_of(pod)
    assert isinstance(found, StageConfig)
    return found


def training(api: Api, namespace: str, kubelet: FakeKubelet) -> Object:
    """The train pod of a new run."""
    kubelet.held.add("train")
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))
    return running_pod(api, namespace)


def test_a_preempted_run_has_lost_what_it_repeated_and_a_restarted_operator_counts_it_once(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    first = training(api, namespace, kubelet)

    end(api, first, 137, 40, "", PREEMPTED)
    api.delete("Pod", namespace, first["metadata"]["name"])
    second = running_pod(api, namespace, first["metadata"]["uid"])
    usage = run_in(api, namespace)["status"]["usage"]
    assert (usage["deviceSeconds"], usage["startingDeviceSeconds"]) == (40, 10)
    eventually("it is counted", lambda: counted(operator, "allocated_device_seconds", namespace) == 50)
    operator.terminate()

    operator = operators.start().wait_active()
    repeat = RepeatedTraining(after=ended_at(first, 31), before=ended_at(second, 3), device_seconds=12)
    result = succeeded(config(second))
    assert result.train is not None
    repeated = result.train.model_copy(update={"lost_device_seconds": 12, "repeats": (repeat,)})
    end(api, second, 0, 30, result.model_copy(update={"train": repeated}).to_json())
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)

    run = run_in(api, namespace)
    (train,) = (each for each in run["status"]["stages"] if each["name"] == "train")
    assert (train["deviceSeconds"], train["startingDeviceSeconds"]) == (70, 20)
    assert lost(run) == {"Waiting": 20, "Preemption": 12}
    (checkpoint,) = api.list("Checkpoint", namespace)
    assert checkpoint["spec"]["cost"]["deviceSeconds"] == 70
    assert counted(operator, "lost_device_seconds", namespace, cause="Preemption") == 12
    assert counted(operator, "lost_device_seconds", namespace, cause="Waiting") == 10
    assert counted(operator, "lost_device_seconds", namespace, cause="Failure") == 0


def test_a_run_with_bad_data_has_lost_all_that_its_training_held(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    operator = operators.start().wait_active()
    pod = training(api, namespace, kubelet)

    failed = StageResult(
        stage="train",
        run=config(pod).run,
        outcome="Failed",
        reason=FailureReason.INVALID_DATA,
        message="train row 3: its answer is empty",
    )
    end(api, pod, ExitCode.BAD_DATA, 25, config(pod).bind(failed).to_json())
    until_condition(api, (namespace, "FineTuneJob", "routing"), "Stalled", operator)

    run = run_in(api, namespace)
    assert lost(run) == {"Waiting": 10, "BadData": 25}
    assert counted(operator, "allocated_device_seconds", namespace) == 35
    assert counted(operator, "lost_device_seconds", namespace, cause="BadData") == 25
