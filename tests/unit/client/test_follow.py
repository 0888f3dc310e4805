# SPDX-License-Identifier: Apache-2.0
"""The state of a run from its objects, and how it is shown until it ends or does not advance."""

import io
import math
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console
from typing_extensions import override

from finetune_client.access import Access
from finetune_client.backend import Object
from finetune_client.cluster import ClusterBackend
from finetune_client.errors import OperationError
from finetune_client.follow import Follower, LineView, RunStatus, StalledError, render
from tests.unit.client.followedruns import NOW, condition, endpoint, event, job, snapshot


def states(shown: RunStatus) -> list[str]:
    return [f"{stage.name} {stage.state}" for stage in shown.stages]


def test_a_new_run_is_preparing_and_waits_with_all_else() -> None:
    assert states(snapshot(job())) == [
        "prepare running",
        "preflight waiting",
        "train waiting",
        "evaluate waiting",
        "promote waiting",
        "serve waiting",
    ]


def test_the_running_stage_shows_step_loss_and_time_left() -> None:
    progress = {"stage": "train", "step": 30, "totalSteps": 96, "loss": 0.4123, "etaSeconds": 75}
    done = (condition("DatasetReady"), condition("Preflighted"))
    shown = snapshot(job(*done, progress=progress, stages=[{"name": "preflight", "seconds": 12.0}]))
    train = next(stage for stage in shown.stages if stage.state == "running")
    assert (train.name, train.detail) == ("train", "step 30/96  loss 0.412  ETA 1:15")
    assert [stage.seconds for stage in shown.stages][:2] == [None, 12.0]


EVALUATED = {"checkpoint": "routing-abc", "verdict": "Passed", "scores": [], "gates": []}
EVALUATED_STAGES = tuple(
    condition(type_) for type_ in ("DatasetReady", "Preflighted", "Trained", "Evaluated")
)
ENDED = (*EVALUATED_STAGES, condition("Ready", "Promoted"))


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (endpoint("", condition("Reconciling", "WaitingForCheckpoint")), False),
        (endpoint("routing-of-before", condition("Ready", "Serving")), False),
        (endpoint("routing-abc", condition("Reconciling", "RollingOut")), False),
        (endpoint("routing-abc", condition("Ready", "Serving")), True),
    ],
    ids=["nothing", "the one before", "not ready", "its own"],
)
def test_a_run_is_served_when_the_endpoint_is_ready_with_its_own_checkpoint(
    served: dict[str, Any], expected: bool
) -> None:
    shown = snapshot(job(*ENDED, evaluation=EVALUATED), served)
    assert shown.serves_own is expected
    assert states(shown)[-2:] == ["promote done", "serve done" if expected else "serve running"]


@pytest.mark.parametrize(
    ("ready", "line"),
    [
        (condition("Ready", "Promoted"), "promote done"),
        (condition("Ready", "AwaitingApproval"), "promote running"),
        (condition("Ready", "Succeeded"), "promote waiting"),
        (condition("Reconciling", "Promoting"), "promote running"),
    ],
    ids=["promoted", "awaits approval", "never promotes", "not yet"],
)
def test_a_run_that_is_not_promoted_is_not_shown_as_promoted(ready: dict[str, Any], line: str) -> None:
    shown = snapshot(job(*EVALUATED_STAGES, ready, evaluation=EVALUATED))
    assert states(shown)[-2:] == [line, "serve running" if line == "promote done" else "serve waiting"]
    waits = next(each for each in shown.stages if each.name == "promote").detail
    assert waits == ("waits for: finetune approve routing" if ready["reason"] == "AwaitingApproval" else "")


def test_events_of_other_objects_and_from_before_the_run_are_left_out() -> None:
    shown = snapshot(
        job(),
        None,
        event("StageStarted", "mine"),
        event("StageStarted", "of before", NOW - timedelta(minutes=5)),
        event("Scheduled", "of a pod", api="v1"),
    )
    assert [event.message for event in shown.events] == ["mine"]


def test_the_picture_names_the_run_what_it_does_and_the_newest_event() -> None:
    working = condition("Reconciling", "Training", "step 3 of [96]")
    out = io.StringIO()
    shown = snapshot(job(working), None, event("StageStarted", "train started"))
    Console(file=out, width=100).print(render(shown, "load: 3 requests sent"))
    for text in (
        "FineTuneJob routing",
        "1:30",
        "Training: step 3 of [96]",
        "train started",
        "load: 3 requests",
    ):
        assert text in out.getvalue()


def test_without_a_terminal_each_change_is_one_line_said_once() -> None:
    out = io.StringIO()
    view = LineView(Console(file=out, width=100), lambda: "")
    started = event("StageStarted", "train started")
    for _ in range(3):
        view.show(snapshot(job(condition("DatasetReady")), None, started))
    assert [line.strip() for line in out.getvalue().splitlines()] == [
        "FineTuneJob routing · StageStarted · train started",
        "✔ prepare",
        "▶ preflight",
    ]


class Cluster(Access):
    """Has the given run and endpoint, and no events. A namespace that it does not know is empty."""

    def __init__(self, job: Object | None, endpoint: Object | None = None) -> None:
        self.found = {"FineTuneJob": job, "InferenceDeployment": endpoint}

    @override
    def object(self, kind: str, namespace: str, name: str) -> Object | None:
        assert name == "routing"
        return self.found[kind] if namespace == "team" else None

    @override
    def events(self, namespace: str) -> list[Object]:
        return []


def follow(
    cluster: Cluster, namespace: str = "team", endpoint: str = "routing", patience_seconds: float = math.inf
) -> Follower:
    backend = ClusterBackend(cluster, namespace)
    console = Console(file=io.StringIO())
    return Follower(backend, console, "routing", endpoint, patience_seconds=patience_seconds)


STALLED = condition("Stalled", "OutOfMemory", "needs 2 GiB more")


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster(job(STALLED)), "FineTuneJob routing: OutOfMemory: needs 2 GiB more"),
        (
            Cluster(job(), endpoint("", STALLED)),
            "InferenceDeployment routing: OutOfMemory: needs 2 GiB more",
        ),
    ],
    ids=["run", "endpoint"],
)
def test_a_stalled_run_or_endpoint_ends_the_wait_and_names_commands_for_details(
    cluster: Cluster, message: str
) -> None:
    with pytest.raises(StalledError) as error:
        follow(cluster).until(lambda _: False)
    assert str(error.value) == message
    assert error.value.commands == (
        "kubectl -n team describe finetunejob routing",
        "kubectl -n team describe inferencedeployment routing",
        "kubectl -n team get pods",
    )
    assert error.value.status.job.uid == "u"


def test_a_run_without_any_change_counts_as_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_client.follow.POLL_SECONDS", 0.0)
    with pytest.raises(StalledError, match="no change for 0 min: not reconciled yet"):
        follow(Cluster(job()), patience_seconds=0.0).until(lambda _: False)


def test_an_endpoint_that_is_stalled_does_not_end_a_run_that_is_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune_client.follow.POLL_SECONDS", 0.0)
    follower = follow(Cluster(job(), endpoint("", STALLED)), endpoint="")
    monkeypatch.setattr(follower, "_find_endpoint", lambda _: endpoint("", STALLED))
    states: list[RunStatus] = []

    def seen_twice(status: RunStatus) -> bool:
        states.append(status)
        return len(states) > 1

    assert follower.until(seen_twice).endpoint is not None


def test_a_deleted_run_ends_the_wait() -> None:
    with pytest.raises(OperationError, match="FineTuneJob routing was deleted"):
        follow(Cluster(job()), "elsewhere").until(lambda _: False)


def test_a_run_is_rendered_with_its_curve_and_prediction_and_texts_stay_texts() -> None:
    evil = "\x1b[31m[bold]text[/]\x07"
    harmless = "\N{REPLACEMENT CHARACTER}[31m[bold]text[/]\N{REPLACEMENT CHARACTER}"
    out = io.StringIO()
    done = (condition("DatasetReady"), condition("Preflighted"), condition("Reconciling", "Training", evil))
    prediction: dict[str, Any] = {"verdict": "Fits", "deviceMemoryBytes": 1 << 30, "hostMemoryBytes": 1}
    prediction |= {"stateBytes": 1, "flops": 1.0}
    progress = {"stage": "train", "step": 2, "totalSteps": 4, "loss": 0.5, "deviceMemoryBytes": 2 << 30}
    shown = snapshot(job(*done, progress=progress, prediction=prediction), None, event("Odd", evil))
    Console(file=out, width=100).print(render(shown, "", [2.0, 1.0, 0.5]))
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        f"   FineTuneJob routing  1:30  Training: {harmless}",
        "  ✔ prepare",
        "  ✔ preflight",
        "  ▶ train      step 2/4  loss 0.500",
        "  · evaluate",
        "  · promote",
        "  · serve",
        "   loss 2.000 █▃▁ 0.500",
        "   predicted 1 GiB  uses 2 GiB",
        f"   FineTuneJob routing · Odd · {harmless}",
    ]
