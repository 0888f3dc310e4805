# SPDX-License-Identifier: Apache-2.0
"""Device time of a stage: waiting for a node, starting and waiting for peers, and the ends of its pods."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.api.stage_status import MAX_ENDED_PODS, LostDeviceTime, StageUsage
from finetune_operator.observe.device_usage import add_lost, open_device_seconds, stage_usage, sum_lost
from finetune_operator.observe.pod_status import INDEX
from finetune_operator.observe.pod_termination import add_ended_pods
from finetune_operator.plan import Manifest
from finetune_trainer.contract.vocabulary import ExitCode

START = datetime(2030, 1, 2, 3, 0, 0, tzinfo=UTC)
DEVICES = 2


def second(count: float) -> datetime:
    return START + timedelta(seconds=count)


def stamp(count: float) -> str:
    return second(count).isoformat()


def job(nodes: int = 1, admitted: int | None = None) -> Manifest:
    """A Job that was created at 0."""
    spec = {"completionMode": "Indexed", "completions": nodes} if nodes > 1 else {}
    resumed = [{"type": "Suspended", "status": "False", "lastTransitionTime": stamp(admitted or 0)}]
    return {
        "metadata": {"creationTimestamp": stamp(0), "labels": {"finetune.dev/devices": str(DEVICES)}},
        "spec": spec,
        "status": {"conditions": [] if admitted is None else resumed},
    }


def pod(
    created: float,
    scheduled: float | None = None,
    started: float | None = None,
    ended: float | None = None,
    *,
    index: int | None = None,
    code: int = 1,
    **status: Any,
) -> Manifest:
    conditions = [
        {
            "type": "PodScheduled",
            "status": "False" if scheduled is None else "True",
            "lastTransitionTime": stamp(created if scheduled is None else scheduled),
        }
    ]
    state: Manifest = {"waiting": {}}
    if started is not None:
        state = {"running": {"startedAt": stamp(started)}}
    if started is not None and ended is not None:
        state = {"terminated": {"startedAt": stamp(started), "finishedAt": stamp(ended), "exitCode": code}}
    return {
        "metadata": {
            "uid": f"{index}-{created}",
            "creationTimestamp": stamp(created),
            "annotations": {} if index is None else {INDEX: str(index)},
        },
        "status": {
            "conditions": conditions + status.pop("more", []),
            "containerStatuses": [{"name": "trainer", "state": state}],
            **status,
        },
    }


def lost(usage: StageUsage | None) -> dict[str, float]:
    assert usage is not None
    return {each.cause: each.device_seconds for each in usage.lost or ()}


def times(usage: StageUsage | None) -> tuple[float, float, float, float]:
    """Queued, starting and running device seconds, and those lost by waiting; per device of a pod."""
    assert usage is not None
    figures = (
        usage.queued_device_seconds or 0,
        usage.starting_device_seconds or 0,
        usage.device_seconds,
        lost(usage).get("Waiting", 0),
    )
    queued, starting, running, waiting = (each / DEVICES for each in figures)
    return queued, starting, running, waiting


EVICTED = {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": stamp(13)}


@pytest.mark.parametrize(
    ("nodes", "pods", "expected"),
    [
        (1, [pod(1, 10, 14)], (10, 4, 86, 4)),
        (1, [pod(1, 10, 14, 40)], (10, 4, 26, 4)),
        (1, [pod(1, None, 14, 40)], (14, 0, 26, 0)),
        (1, [pod(1, 20, 14, 40)], (14, 0, 26, 0)),
        (1, [pod(1, 10, 14, 40), pod(42, 45, 50)], (10 + 3, 4 + 5, 26 + 50, 4 + 5)),
        (1, [pod(1, 10, phase="Failed", more=[EVICTED]), pod(15, 16, 20)], (10 + 1, 3 + 4, 80, 3 + 4)),
        (2, [pod(1, 5, 6, index=0), pod(1, 30, 36, index=1)], (5 + 30, 1 + 6, 94 + 64, 1 + 6 + 30)),
        (2, [pod(1, 5, 6, index=0), pod(1, index=1)], (5 + 100, 1, 94, 1 + 94)),
        (
            2,
            [pod(1, 5, 6, 50, index=0), pod(1, 5, 6, 40, index=1), pod(42, 43, 44, index=1)],
            (5 + 5 + 1, 1 + 1 + 1, 44 + 34 + 56, 3),
        ),
        (
            2,
            [pod(1, 5, 6, 50, index=0), pod(1, 5, 6, 40, index=1), pod(42, 43, 60, index=1)],
            (5 + 5 + 1, 1 + 1 + 17, 44 + 34 + 40, 19),
        ),
        (
            2,
            [
                *(pod(1, 5, 6, 40, index=0), pod(1, 5, 6, 40, index=1)),
                *(pod(42, 43, 50, index=0), pod(52, 53, 60, index=1)),
            ],
            (10 + 1 + 1, 2 + 7 + 7, 68 + 50 + 40, 16 + 10),
        ),
        (
            2,
            [pod(1, 5, 6, 40, index=1, code=0, phase="Succeeded"), pod(50, 51, 55, index=0)],
            (5 + 51, 1 + 4, 34 + 45, 5),
        ),
        (2, [pod(1, 5, 6, index=0), pod(42, 43, 60, index=1)], (5 + 43, 1 + 17, 94 + 40, 18)),
    ],
    ids=[
        "runs",
        "ended",
        "without the time of its scheduling",
        "the node's clock is behind",
        "one follows another",
        "evicted before it started",
        "the first waits for the second",
        "the second has no node yet",
        "a peer failed, and the other one noticed later",
        "it ended before its peer was back",
        "both were replaced",
        "a peer has done its part",
        "its first peer is gone",
    ],
)
def test_a_pod_holds_devices_from_its_scheduling_and_waits_until_all_have_started(
    nodes: int, pods: list[Manifest], expected: tuple[float, ...]
) -> None:
    assert times(stage_usage(None, "train", job(nodes), pods, second(100))) == expected


def test_looking_often_counts_the_same_as_looking_once() -> None:
    often: StageUsage | None = None
    for now in (4, 6, 7, 12, 29, 30, 33, 36, 37, 80, 90):

        def seen(at: float, when: float = now) -> float | None:
            return at if at <= when else None

        pods = [
            pod(1, seen(5), seen(6), seen(90), index=0),
            pod(1, seen(30), seen(36), seen(90), index=1),
        ]
        often = stage_usage(often, "train", job(2), pods, second(now))
    whole = [pod(1, 5, 6, 90, index=0), pod(1, 30, 36, 90, index=1)]
    once = stage_usage(None, "train", job(2), whole, second(100))
    assert times(often) == times(once) == (35, 7, 84 + 54, 7 + 30)
    assert often == stage_usage(often, "train", job(2), whole, second(1000))


def test_a_run_that_a_queue_stopped_waits_again_from_the_end_of_its_pods() -> None:
    before = stage_usage(None, "train", job(admitted=8), [pod(8, 10, 12, 40, code=20)], second(40))
    assert times(before) == (10, 2, 28, 2)
    again = stage_usage(before, "train", job(admitted=300), [pod(300, 301, 303)], second(310))
    assert times(again) == (10 + 261, 2 + 2, 28 + 7, 4)


def test_what_an_earlier_release_counted_stays_and_only_newer_time_is_added() -> None:
    earlier = StageUsage(name="train", queued_seconds=12, seconds=50, device_seconds=100, until=second(62))
    usage = stage_usage(earlier, "train", job(), [pod(1, 10, 12)], second(100))
    assert usage is not None
    assert (usage.queued_seconds, usage.device_seconds) == (12, 100 + 38 * DEVICES)
    assert (usage.queued_device_seconds, usage.starting_device_seconds, usage.lost) == (None, None, None)


PREEMPTED = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}


@pytest.mark.parametrize(
    ("code", "status", "metadata", "cause"),
    [
        (1, {}, {}, "Failure"),
        (137, {}, {}, "Failure"),
        (137, {"more": [PREEMPTED]}, {}, "Preemption"),
        (1, {"more": [PREEMPTED]}, {}, "Preemption"),
        (20, {}, {}, "Preemption"),
        (21, {}, {}, "PeerLost"),
        (143, {}, {"deletionTimestamp": stamp(30)}, "Preemption"),
        (0, {}, {}, None),
    ],
)
def test_the_end_of_a_pod_is_kept_with_its_cause_once(
    code: int, status: Manifest, metadata: Manifest, cause: str | None
) -> None:
    ended = pod(1, 10, 12, 40, code=code, **status)
    ended["metadata"] |= metadata
    usage = stage_usage(None, "train", job(), [ended], second(50))
    usage = stage_usage(usage, "train", job(), [ended, pod(42, 43, 44)], second(60))
    assert usage is not None
    assert [(each.at, each.cause) for each in usage.ended or ()] == ([(second(40), cause)] if cause else [])


def test_lost_time_is_added_by_cause() -> None:
    first = add_lost(None, "BadData", 3)
    both = add_lost(add_lost(first, "Waiting", 1.5), "BadData", 0.25)
    assert both == (
        LostDeviceTime(cause="Waiting", device_seconds=1.5),
        LostDeviceTime(cause="BadData", device_seconds=3.25),
    )
    assert add_lost(None, "Failure", 0) is None
    usage = StageUsage(name="train", until=START, device_seconds=10, starting_device_seconds=2, lost=both)
    assert open_device_seconds(usage) == 12 - 4.75
    assert sum_lost((usage, usage)) == add_lost(add_lost(None, "Waiting", 3), "BadData", 6.5)


@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun", "Error"])
def test_a_container_that_cannot_be_started_has_not_run(reason: str) -> None:
    failed = pod(0, scheduled=10, started=0, ended=15, code=128, phase="Failed")
    ended = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"startedAt": "1970-01-01T00:00:00Z", "reason": reason}
    usage = stage_usage(None, "train", job(), [failed], second(20))
    assert times(usage) == (10, 5, 0, 5)
    assert usage is not None
    assert (usage.seconds, usage.queued_seconds) == (0, 15)


def test_a_pod_of_a_lost_node_uses_no_more_and_what_was_counted_stays() -> None:
    before = stage_usage(None, "train", job(), [pod(0, 0, 10)], second(100))
    lost_pod = pod(0, 0, 10, phase="Failed")
    after = stage_usage(before, "train", job(), [lost_pod], second(200))
    assert after == before
    later = stage_usage(after, "train", job(), [lost_pod, pod(90, 100, 110)], second(210))
    assert times(later)[2] == 90 + 100


@given(
    st.lists(st.tuples(st.integers(1, 3), st.sampled_from([1, ExitCode.PEER_LOST])), max_size=40),
    st.randoms(use_true_random=False),
)
def test_the_same_pods_change_no_recorded_ends(pods: list[tuple[int, int]], random: Any) -> None:
    ended = [pod(number, 0, 0, at, code=code) for number, (at, code) in enumerate(pods)]
    known = add_ended_pods((), ended)
    random.shuffle(ended)
    assert add_ended_pods(known, ended) == known
    assert len(known) == min(len(pods), MAX_ENDED_PODS)


def test_ends_that_another_one_caused_are_left_out_before_it() -> None:
    first = pod(0, 0, 0, 10)
    peers = [pod(number, 0, 0, 10 + number, code=ExitCode.PEER_LOST) for number in range(1, 32)]
    known = add_ended_pods((), [first, *peers])
    assert [each.cause for each in known] == ["Failure", *["PeerLost"] * (MAX_ENDED_PODS - 1)]
